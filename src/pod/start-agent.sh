[ -x /bin/bash ] || export BUILDKITE_SHELL="${BUILDKITE_SHELL:-/bin/sh -e -c}"
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
