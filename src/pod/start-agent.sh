[ -x /bin/bash ] || export BUILDKITE_SHELL="${BUILDKITE_SHELL:-/bin/sh -e -c}"
[ -n "${SSL_CERT_FILE-}${SSL_CERT_DIR-}" ] ||
    [ -f /etc/ssl/certs/ca-certificates.crt ] ||
    [ -f /etc/pki/tls/certs/ca-bundle.crt ] ||
    [ -f /etc/ssl/ca-bundle.pem ] ||
    [ -f /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem ] ||
    [ -f /etc/ssl/cert.pem ] ||
    [ ! -f /buildkite/ca-certificates.crt ] ||
    export SSL_CERT_FILE=/buildkite/ca-certificates.crt
exec /buildkite/buildkite-agent "$@"
