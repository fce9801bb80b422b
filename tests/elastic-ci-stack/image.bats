#!/usr/bin/env bats
# The downloads of the Dockerfile, and the script that fills in its checksums. No test builds the image itself.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154 # The helper's variables, a process of each test, and shell in strings.

bats_require_minimum_version 1.5.0
load helper

names=(DOCKER COMPOSE BUILDX AWS_CLI GIT_LFS BUILDKITE_AGENT S3_HELPER TINI)

# The stand-in for the web: each address has an archive as its publisher packs it, with a program that prints the address.
# FAIL_URL: part of an address that fails; CHANGED_URL: part of an address whose content changed.
with_web() {
    stand_in curl '
        for url; do :; done
        while [ "$1" != --output ]; do shift; done
        if [[ $url == *"${FAIL_URL:-no such}"* ]]; then echo "curl: (22) The requested URL returned error: 404" >&2; exit 22; fi
        pack=$(mktemp -d)
        program() { mkdir -p "$pack/$(dirname "$1")"; printf "#!/bin/sh\necho $url\n" >"$pack/$1"; }
        case $url in
            */docker-*.tgz) program docker/docker; program docker/dockerd ;;
            */git-lfs-*) program git-lfs-3/git-lfs; program git-lfs-3/install.sh ;;
            */buildkite-agent-*) program buildkite-agent; program bootstrap.sh ;;
            *) program file ;;
        esac
        if [ -e "$pack/file" ]; then cp "$pack/file" "$2"
        else tar -C "$pack" --sort=name --mtime=@0 --owner=0 --group=0 -c . | gzip -n >"$2"; fi
        if [[ $url == *"${CHANGED_URL:-no such}"* ]]; then echo changed >>"$2"; fi
        rm -rf "$pack"'
    stand_in unzip '
        mkdir -p aws/dist
        cp "$2" aws/dist/aws
        chmod +x aws/dist/aws'
}

# The arguments that `checksums` prints, as the environment of the build's RUN.
build_arguments() { "$agent/checksums" "$@" 2>/dev/null | sed 's/^--build-arg //'; }
# shellcheck disable=SC2046
build() { env $(build_arguments "$architecture") "${@:2}" "$agent/install-downloads" "$1" "$BATS_TEST_TMPDIR/root of image"; }

@test "checksums: every argument of the Dockerfile, for both architectures, as docker build takes them" {
    with_web
    run --separate-stderr "$agent/checksums"
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 24 ]
    for line in "${lines[@]}"; do [[ $line =~ ^--build-arg\ [A-Z0-9_]+=([0-9.]+|[0-9a-f]{64})$ ]]; done
    diff <(printf '%s\n' "${lines[@]}" | sed 's/--build-arg //; s/=.*//' | sort) \
        <(sed -n 's/^ARG \([A-Z0-9_]*_\(VERSION\|SHA256_[A-Z0-9]*\)\).*/\1/p' "$agent/Dockerfile" | sort)
    # Each belongs to its own file.
    curl --output "$BATS_TEST_TMPDIR/tini" https://github.com/krallin/tini/releases/download/v0.19.0/tini-static-arm64
    [[ $output == *"--build-arg TINI_SHA256_ARM64=$(sha256sum <"$BATS_TEST_TMPDIR/tini" | cut -d' ' -f1)"* ]]
    [ "$(printf '%s\n' "${lines[@]}" | grep SHA256 | sed 's/.*=//' | sort -u | wc -l)" -eq 16 ]
}

@test "checksums: one architecture, and another version than the Dockerfile's" {
    with_web
    DOCKER_VERSION=30.0.1 run --separate-stderr "$agent/checksums" arm64
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 16 ]
    [[ $output == *"--build-arg DOCKER_VERSION=30.0.1"* ]]
    [[ $output != *AMD64* ]]
    grep -q 'https://download.docker.com/linux/static/stable/aarch64/docker-30.0.1.tgz' "$CALLS"
}

@test "checksums: the addresses of each architecture" {
    with_web
    "$agent/checksums" amd64 >/dev/null 2>&1
    [ "$(grep -c -E 'amd64|x86_64' "$CALLS")" -eq 8 ]
    [ "$(grep -c -E 'arm64|aarch64' "$CALLS")" -eq 0 ]
    : >"$CALLS"
    "$agent/checksums" arm64 >/dev/null 2>&1
    [ "$(grep -c -E 'amd64|x86_64' "$CALLS")" -eq 0 ]
    [ "$(grep -c -E 'arm64|aarch64' "$CALLS")" -eq 8 ]
    run ! grep -v 'https://' "$CALLS"
}

@test "checksums: a download that fails is named, and nothing is printed" {
    with_web
    export TMPDIR="$BATS_TEST_TMPDIR/tmp"
    mkdir "$TMPDIR"
    FAIL_URL=git-lfs-linux-arm64 run --separate-stderr "$agent/checksums"
    [ "$status" -ne 0 ]
    [ -z "$output" ]
    [[ $stderr == *404*"checksums: https://github.com/git-lfs/"*"git-lfs-linux-arm64-v3.7.1.tar.gz could not be downloaded"* ]]
    [ -z "$(ls -A "$TMPDIR")" ]
}

@test "checksums: an unknown architecture and an invalid version fail before any download" {
    with_web
    run "$agent/checksums" amd64 riscv64
    [ "$status" -eq 1 ]
    [[ $output == *'the architecture must be amd64 or arm64, got "riscv64"'* ]]
    DOCKER_VERSION=v29 run "$agent/checksums"
    [ "$status" -eq 1 ]
    [[ $output == *'DOCKER_VERSION must be a version without "v", got "v29"'* ]]
    [ "$(calls curl)" -eq 0 ]
}

@test "the build installs each program, for amd64 and for arm64" {
    with_web
    for architecture in amd64 arm64; do
        rm -rf "$BATS_TEST_TMPDIR/root of image"
        build "$architecture"
        cd "$BATS_TEST_TMPDIR/root of image/usr/local"
        diff <(find . -type f -perm -100 | sort) <(printf './%s\n' aws-cli/aws bin/buildkite-agent bin/docker bin/git-lfs \
            bin/s3secrets-helper bin/tini lib/docker/cli-plugins/docker-buildx lib/docker/cli-plugins/docker-compose)
        for program in aws buildkite-agent docker git-lfs s3secrets-helper tini; do
            case $architecture in
                amd64) bin/$program | grep -E 'amd64|x86_64' ;;
                arm64) bin/$program | grep -E 'arm64|aarch64' ;;
            esac
        done
        bin/aws | grep awscli
        lib/docker/cli-plugins/docker-buildx | grep buildx
        lib/docker/cli-plugins/docker-compose | grep compose
    done
}

@test "the build names each missing argument, and fails before any download" {
    with_web
    architecture=amd64
    arguments=$(build_arguments amd64)
    : >"$CALLS"
    for name in "${names[@]}"; do
        for argument in "${name}_VERSION" "${name}_SHA256_AMD64"; do
            # shellcheck disable=SC2086
            run env $arguments "$argument=" "$agent/install-downloads" amd64 "$BATS_TEST_TMPDIR/root of image"
            [ "$status" -eq 1 ]
            [ "${lines[1]}" = "  --build-arg $argument=..." ]
            [ "${#lines[@]}" -eq 2 ]
        done
    done
    run "$agent/install-downloads" arm64 "$BATS_TEST_TMPDIR/root of image"
    [ "$status" -eq 1 ]
    [ "${#lines[@]}" -eq 17 ]
    [ "$(calls curl)" -eq 0 ]
}

@test "the build fails for an invalid checksum, changed content, and an unknown architecture" {
    with_web
    architecture=amd64
    run build amd64 TINI_SHA256_AMD64=abc
    [ "$status" -eq 1 ]
    [[ $output == *"a SHA-256 has 64 hexadecimal digits"*"TINI_SHA256_AMD64=abc"* ]]
    run build amd64 CHANGED_URL=tini-static
    [ "$status" -eq 1 ]
    [[ $output == *"/tini-static-amd64 is not what TINI_SHA256_AMD64 says:"*expected*got* ]]
    [ ! -e "$BATS_TEST_TMPDIR/root of image" ]
    run build s390x
    [ "$status" -eq 1 ]
    [[ $output == *'the architecture must be amd64 or arm64, got "s390x"'* ]]
    run build ""
    [ "$status" -eq 1 ]
    [[ $output == *"build with BuildKit"* ]]
    run build amd64 FAIL_URL=awscli
    [ "$status" -eq 1 ]
    [[ $output == *"awscli-exe-linux-x86_64-2.35.13.zip could not be downloaded"* ]]
}

@test "the Dockerfile has no checksum of its own, and copies files that exist" {
    run ! grep -E '^ARG .*SHA256.*=' "$agent/Dockerfile"
    run ! grep -i -E ':latest|FROM .*/.*@' "$agent/Dockerfile"
    # shellcheck disable=SC2013
    for file in $(sed -n 's/^COPY \([^-].*\) [^ ]*$/\1/p' "$agent/Dockerfile"); do [ -e "$agent/$file" ]; done
    for script in start-agent git-credential-s3-secrets install-downloads checksums hooks/{environment,pre-command,pre-exit}; do
        [ -x "$agent/$script" ]
    done
}
