[ -x /bin/bash ] || export BUILDKITE_SHELL="${BUILDKITE_SHELL:-/bin/sh -e -c}"
command -v git >/dev/null || export BUILDKITE_CHECKOUT_ATTEMPTS=1
{ mkdir -p "$HOME" && [ -w "$HOME" ]; } 2>/dev/null || {
    export HOME=/buildkite/home
    mkdir -p "$HOME"
}
ssh_file() (
    [ -n "$2$3$4" ] || exit 0
    umask 077
    mkdir -p ~/.ssh
    if [ -n "$2" ]; then printf '%s\n' "$2"; elif [ -n "$3" ]; then printf %s "$3" | base64 -d; else cat "$4"; fi >~/.ssh/"$1"
)
ssh_file config "${SSH_CONFIG-}" "${SSH_CONFIG_B64-}" "${SSH_CONFIG_PATH-}"
ssh_file known_hosts "${SSH_KNOWN_HOSTS-}" "${SSH_KNOWN_HOSTS_B64-}" "${SSH_KNOWN_HOSTS_PATH-}"
ssh_file id_rsa "${SSH_PRIVATE_RSA_KEY-}" "${SSH_PRIVATE_RSA_KEY_B64-}" "${SSH_PRIVATE_RSA_KEY_PATH-}"
ssh_file id_ecdsa "${SSH_PRIVATE_ECDSA_KEY-}" "${SSH_PRIVATE_ECDSA_KEY_B64-}" "${SSH_PRIVATE_ECDSA_KEY_PATH-}"
ssh_file id_ed25519 "${SSH_PRIVATE_ED25519_KEY-}" "${SSH_PRIVATE_ED25519_KEY_B64-}" "${SSH_PRIVATE_ED25519_KEY_PATH-}"
unset SSH_PRIVATE_RSA_KEY SSH_PRIVATE_ECDSA_KEY SSH_PRIVATE_ED25519_KEY
unset SSH_PRIVATE_RSA_KEY_B64 SSH_PRIVATE_ECDSA_KEY_B64 SSH_PRIVATE_ED25519_KEY_B64
[ -n "${SSL_CERT_FILE-}${SSL_CERT_DIR-}" ] ||
    [ -f /etc/ssl/certs/ca-certificates.crt ] ||
    [ -f /etc/pki/tls/certs/ca-bundle.crt ] ||
    [ -f /etc/ssl/ca-bundle.pem ] ||
    [ -f /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem ] ||
    [ -f /etc/ssl/cert.pem ] ||
    [ ! -f /buildkite/ca-certificates.crt ] ||
    export SSL_CERT_FILE=/buildkite/ca-certificates.crt
/buildkite/tini --version >/dev/null 2>&1 || {
    rm -f /buildkite/token
    exec /buildkite/buildkite-agent "$@"
}
case "${BUILDKITE_AGENT_TOKEN-}" in
    '' | fd://* | file://*) ;;
    *)
        printf %s "$BUILDKITE_AGENT_TOKEN" >/buildkite/token &
        exec 3</buildkite/token
        export BUILDKITE_AGENT_TOKEN=fd://3
        ;;
esac
rm -f /buildkite/token
exec /buildkite/tini -- /buildkite/buildkite-agent "$@"
