#!/usr/bin/env bash
# What buildkite/docker-ssh-env-config does with the variables that our docs name: an SSH key and known hosts become files.
set -euo pipefail

file() {
    [ -n "$2" ] || return 0
    (umask 077 && mkdir -p ~/.ssh && printf '%s\n' "$2" >~/.ssh/"$1")
}

file id_rsa "${SSH_PRIVATE_RSA_KEY:-}"
file id_ed25519 "${SSH_PRIVATE_ED25519_KEY:-}"
file known_hosts "${SSH_KNOWN_HOSTS:-}"
exec "$@"
