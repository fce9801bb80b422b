# shellcheck shell=bash
# What the image downloads, and from where: the one list that `install-downloads` and `checksums` read. Versions are in the
# Dockerfile, as NAME_VERSION; checksums come as NAME_SHA256_AMD64 and NAME_SHA256_ARM64.

# shellcheck disable=SC2034 # Both scripts go through it.
downloads=(DOCKER COMPOSE BUILDX AWS_CLI GIT_LFS BUILDKITE_AGENT S3_HELPER TINI)

fail() { printf '%s\n' "${0##*/}: $1" "${@:2}" >&2; exit 1; }

# `url NAME ARCHITECTURE`, by the version in NAME_VERSION.
url() {
    local version=${1}_VERSION machine
    version=${!version}
    # How others than Go call it.
    machine=$(machine "$2")
    case $1 in
        DOCKER) echo "https://download.docker.com/linux/static/stable/$machine/docker-$version.tgz" ;;
        COMPOSE) echo "https://github.com/docker/compose/releases/download/v$version/docker-compose-linux-$machine" ;;
        BUILDX) echo "https://github.com/docker/buildx/releases/download/v$version/buildx-v$version.linux-$2" ;;
        AWS_CLI) echo "https://awscli.amazonaws.com/awscli-exe-linux-$machine-$version.zip" ;;
        GIT_LFS) echo "https://github.com/git-lfs/git-lfs/releases/download/v$version/git-lfs-linux-$2-v$version.tar.gz" ;;
        BUILDKITE_AGENT)
            echo "https://github.com/buildkite/agent/releases/download/v$version/buildkite-agent-linux-$2-$version.tar.gz"
            ;;
        S3_HELPER)
            echo "https://github.com/buildkite/elastic-ci-stack-s3-secrets-hooks/releases/download/v$version/s3secrets-helper-linux-$2"
            ;;
        TINI) echo "https://github.com/krallin/tini/releases/download/v$version/tini-static-$2" ;;
    esac
}

machine() {
    case $1 in
        amd64) echo x86_64 ;;
        arm64) echo aarch64 ;;
        "") fail "the architecture is not known; build with BuildKit, which says it by TARGETARCH" ;;
        *) fail "the architecture must be amd64 or arm64, got \"$1\"" ;;
    esac
}

# `download NAME ARCHITECTURE FILE`
download() {
    local from
    from=$(url "$1" "$2")
    echo "$from" >&2
    curl --fail --silent --show-error --location --retry 3 --output "$3" "$from" || fail "$from could not be downloaded"
}

sha256() { sha256sum <"$1" | cut -d' ' -f1; }
