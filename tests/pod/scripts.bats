#!/usr/bin/env bats
# src/pod/copy-agent.sh and start-agent.sh, in every shell that an image may have as /bin/sh. A folder stands for the root of both
# containers. Its agent prints which one it is, its arguments and its environment.

bats_require_minimum_version 1.5.0

scripts="$BATS_TEST_DIRNAME/../../src/pod"
missing="to put into the image of the step."
shells=()
for shell in /bin/sh dash bash busybox; do
    if command -v "$shell" >/dev/null; then shells+=("$shell"); fi
done

new_root() {
    echo "shell: $shell"
    root="$BATS_TEST_TMPDIR/root of ${shell##*/}"
    mkdir -p "$root/agent-scheduler"
    agent usr/bin/buildkite-agent "in the PATH"
    tini 0
}

# PATH MODE TEXT
file() {
    mkdir -p "$(dirname "$root/$1")"
    printf %s "$3" >"$root/$1"
    chmod "$2" "$root/$1"
}

# PATH WHICH
agent() { file "$1" 555 "#!/bin/sh
echo '$2'
for word; do echo \"<\$word>\"; done
env
"; }

# STATUS: whether it runs in the image of the step.
tini() { file usr/bin/tini 755 "#!/bin/sh
[ \"\$1\" != --version ] || exit $1
echo under tini
shift
exec \"\$@\"
"; }

# Runs the text of a script, which ends with status $expected: VARIABLE=VALUE … -- TEXT ARGUMENT …
run_script() {
    local variables=() command=("$shell")
    while [ "$1" != -- ]; do
        variables+=("$1")
        shift
    done
    if [ "$shell" = busybox ]; then command+=(sh); fi
    local text
    # shellcheck disable=SC2001 # Bash has no alternatives there.
    text=$(sed "s#/agent-scheduler/\|/buildkite/\|/etc/\|/bin/bash#'$root'&#g" <<<"$2")
    PATH="$root/usr/bin:$PATH" run -"${expected:-0}" --separate-stderr env -i PATH="$root/usr/bin:/usr/bin:/bin" \
        "${variables[@]}" "${command[@]}" -c "$text" "name of the script" "${@:3}"
    output=${output//"$root"/} stderr=${stderr//"$root"/}
}

copy() { run_script -- "$(<"$scripts/copy-agent.sh")" "$@"; }

# Starts the agent, with the copy where the container of the step has it: VARIABLE=VALUE … -- ARGUMENT …
start() {
    local variables=()
    while [ "$1" != -- ]; do
        variables+=("$1")
        shift
    done
    rm -rf "$root/buildkite"
    mv "$root/agent-scheduler" "$root/buildkite"
    run_script "${variables[@]}" -- "$(<"$scripts/start-agent.sh")" "${@:2}"
    # A step that reads all files would wait for it.
    [ ! -e "$root/buildkite/token" ]
    mv "$root/buildkite" "$root/agent-scheduler"
}

mode() { stat -c %a "$root/agent-scheduler/$1"; }

@test "the agent is copied with what is beside it, and any user may write to the copies" {
    for shell in "${shells[@]}"; do
        new_root
        copy
        [ "$(ls "$root/agent-scheduler")" = $'buildkite-agent\nbuildkite-agent.cfg\ntini\ntoken' ]
        [ "$(mode buildkite-agent.cfg)" = 666 ]

        file buildkite/buildkite-agent.cfg 400 spawn=1
        file buildkite/hooks/environment 500 "echo hook"
        file buildkite/builds/large 444 "from the build of the image"
        file etc/ssl/certs/ca-certificates.crt 444 certificates
        agent buildkite/buildkite-agent "beside the configuration"
        # A container that is started again finds what the first one left.
        for _ in 1 2; do
            copy
            [ "$(<"$root/agent-scheduler/buildkite-agent.cfg")" = spawn=1 ]
            [ "$(<"$root/agent-scheduler/hooks/environment")" = "echo hook" ]
            [ "$(<"$root/agent-scheduler/ca-certificates.crt")" = certificates ]
            [ "$(mode buildkite-agent.cfg)" = 666 ]
            [ "$(mode hooks/environment)" = 777 ]
            [ "$(mode ca-certificates.crt)" = 666 ]
            [ "$(mode buildkite-agent)" = 777 ]
            [ ! -e "$root/agent-scheduler/builds" ]
        done
        start --
        [[ $output == $'under tini\nin the PATH'* ]]

        agent opt/buildkite-agent "the named one"
        copy "$root/opt/buildkite-agent"
        start --
        [[ $output == *"the named one"* ]]
    done
}

@test "a missing agent is reported and nothing is copied" {
    for shell in "${shells[@]}"; do
        new_root
        expected=1 copy /nowhere/buildkite-agent
        [ "$stderr" = "The image of the pod definition has no /nowhere/buildkite-agent $missing" ]
        # The machine that runs the tests may have an agent in its PATH.
        text=$(sed "s/command -v buildkite-agent/&-nowhere/" "$scripts/copy-agent.sh")
        expected=1 run_script -- "$text"
        [ "$stderr" = "The image of the pod definition has no buildkite-agent in its PATH $missing" ]
        [ -z "$(ls "$root/agent-scheduler")" ]
    done
}

@test "the agent gets its arguments as they are, and a shell that is there" {
    ours="BUILDKITE_SHELL=/bin/sh -e -c"
    for shell in "${shells[@]}"; do
        new_root
        copy
        # shellcheck disable=SC2016 # Not to be expanded.
        start "KEPT=as it is" -- start --name 'an agent  of $HOME' "" "*"
        # shellcheck disable=SC2016
        [[ $output == *$'<start>\n<--name>\n<an agent  of $HOME>\n<>\n<*>\n'* ]]
        [[ $output == *"$ours"* ]]
        [[ $output == *"KEPT=as it is"* ]]
        start "BUILDKITE_SHELL=/bin/zsh -c" -- start
        [[ $output == *"BUILDKITE_SHELL=/bin/zsh -c"* ]]
        [[ $output != *"$ours"* ]]
        agent bin/bash bash
        start -- start
        [[ $output != *BUILDKITE_SHELL* ]]
    done
}

@test "the copied certificates are used where there are no others" {
    ours=SSL_CERT_FILE=/buildkite/ca-certificates.crt
    first=etc/ssl/certs/ca-certificates.crt
    for shell in "${shells[@]}"; do
        new_root
        copy
        start --
        [[ $output != *SSL_CERT* ]]
        file "$first" 444 certificates
        copy
        rm "$root/$first"
        start --
        [[ $output == *"$ours"* ]]
        for own in SSL_CERT_FILE=/own.pem SSL_CERT_DIR=/own; do
            start "$own" --
            [[ $output == *"$own"* ]]
            [[ $output != *"$ours"* ]]
        done
        for other in "$first" etc/pki/tls/certs/ca-bundle.crt etc/ssl/ca-bundle.pem \
            etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem etc/ssl/cert.pem; do
            file "$other" 444 certificates
            start --
            [[ $output != *SSL_CERT* ]]
            rm "$root/$other"
        done
    done
}

@test "the agent gets its token through a pipe, under a tini that runs in the image" {
    for shell in "${shells[@]}"; do
        new_root
        file usr/bin/buildkite-agent 755 $'#!/bin/sh\necho "read: $(cat <&3)"\nenv\n'
        copy
        start BUILDKITE_AGENT_TOKEN=bkct_secret -- start
        [[ $output == *"read: bkct_secret"* ]]
        [[ $output == *BUILDKITE_AGENT_TOKEN=fd://3* ]]

        agent usr/bin/buildkite-agent "an agent"
        copy
        start BUILDKITE_AGENT_TOKEN=file:///token -- start
        [[ $output == *BUILDKITE_AGENT_TOKEN=file:///token* ]]
        tini 1
        copy
        start BUILDKITE_AGENT_TOKEN=bkct_secret -- start
        [[ $output == "an agent"* ]]
        [[ $output == *BUILDKITE_AGENT_TOKEN=bkct_secret* ]]
    done
}

@test "the SSH files of the variables are written, and no variable keeps a key" {
    for shell in "${shells[@]}"; do
        new_root
        copy
        file home/known-hosts 444 $'example.com ssh-ed25519 AAAA\n'
        start HOME="$root/home" SSH_PRIVATE_RSA_KEY=$'first line\nlast line' SSH_PRIVATE_ED25519_KEY_B64="$(base64 <<<'the key')" \
            SSH_KNOWN_HOSTS_PATH="$root/home/known-hosts" -- start
        [ "$(<"$root/home/.ssh/id_rsa")" = $'first line\nlast line' ]
        [ "$(<"$root/home/.ssh/id_ed25519")" = "the key" ]
        cmp "$root/home/.ssh/known_hosts" "$root/home/known-hosts"
        [ "$(stat -c %a "$root/home/.ssh" "$root/home/.ssh/id_rsa")" = $'700\n600' ]
        [ "$(ls "$root/home/.ssh")" = $'id_ed25519\nid_rsa\nknown_hosts' ]
        [[ $output == *HOME=/home* ]]
        [[ $output != *SSH_PRIVATE* ]]
        start HOME="$root/other" -- start
        [ ! -e "$root/other/.ssh" ]
    done
}

@test "a user without a home gets one" {
    for shell in "${shells[@]}"; do
        new_root
        copy
        for home in HOME=/dev/null/home KEPT=; do
            start "$home" SSH_PRIVATE_RSA_KEY=key -- start
            [[ $output == *HOME=/buildkite/home* ]]
            [ "$(<"$root/agent-scheduler/home/.ssh/id_rsa")" = key ]
        done
    done
}

@test "without git the agent tries a checkout once" {
    for shell in "${shells[@]}"; do
        new_root
        copy
        start -- start
        [[ $output != *BUILDKITE_CHECKOUT_ATTEMPTS* ]]
        mv "$root/agent-scheduler" "$root/buildkite"
        # The machine that runs the tests has git.
        run_script -- "$(sed "s/command -v git/&-nowhere/" "$scripts/start-agent.sh")" start
        [[ $output == *BUILDKITE_CHECKOUT_ATTEMPTS=1* ]]
    done
}
