#!/usr/bin/env bats
# The agent hooks: each setting on and off, and each failure.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154 # The helper's variables, a process of each test, and shell in strings.

bats_require_minimum_version 1.5.0
load helper

all_on=(SECRETS_PLUGIN_ENABLED=true ECR_PLUGIN_ENABLED=1 DOCKER_LOGIN_PLUGIN_ENABLED=on BUILDKITE_ECR_POLICY=full
    "BUILDKITE_SECRETS_BUCKET=the bucket" AWS_REGION=eu-west-1)
# The hooks have the pod's variables, as the agent's process, unless the step sets its own.
# shellcheck disable=SC2163
export_pod() { export "$@"; pod; }

@test "nothing is switched on by default, and the job gets a Docker config of its own" {
    pod
    run hook environment
    [ "$status" -eq 0 ]
    [ "$(calls s3secrets)" -eq 0 ]
    [ "$(calls 'aws')" -eq 0 ]
    [ "$(calls 'docker login')" -eq 0 ]
    exported
    [ -d "$DOCKER_CONFIG" ]
    [ "$(stat -c %a "$DOCKER_CONFIG")" = 700 ]
    [ -z "$(ls -A "$DOCKER_CONFIG")" ]
}

@test "all switched on: secrets, then ECR, then Docker's login, and no secret in what is printed" {
    export_pod "${all_on[@]}"
    export SECRETS=$'A_TOKEN=\'token Secret\'\nDOCKER_LOGIN_USER=\'a user\'\nDOCKER_LOGIN_PASSWORD=\'docker Secret\'\n'
    run hook environment
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output != *Secret* ]]
    [ "$(grep -c 'the bucket|' "$CALLS")" -eq 1 ]
    grep -q 'docker login --username AWS --password-stdin 111111111111.dkr.ecr.eu-west-1.amazonaws.com$' "$CALLS"
    exported
    [ "$A_TOKEN" = "token Secret" ]
    run hook pre-command
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output != *Secret* ]]
    grep -q 'docker login --username a user --password-stdin --$' "$CALLS"
    [ "$(cat "$STDIN")" = $'ecr-Secret\ndocker Secret' ]
    run ! grep -q Secret "$CALLS"
    hook pre-exit
    run ! config_folders
}

@test "on, 1 and true switch on in any case; other words do not" {
    for word in on 1 true True ON; do
        pod ECR_PLUGIN_ENABLED=$word BUILDKITE_ECR_POLICY=readonly
        AWS_REGION=eu-west-1 hook environment ECR_PLUGIN_ENABLED=$word
        [ "$(calls 'docker login')" -eq 1 ]
    done
    for word in off 0 false yes ''; do
        pod ECR_PLUGIN_ENABLED=$word BUILDKITE_ECR_POLICY=readonly
        AWS_REGION=eu-west-1 hook environment ECR_PLUGIN_ENABLED=$word
        [ "$(calls 'docker login')" -eq 0 ]
    done
}

@test "a step switches off each plugin by itself" {
    export_pod "${all_on[@]}" DOCKER_LOGIN_USER=me DOCKER_LOGIN_PASSWORD=x
    hook environment SECRETS_PLUGIN_ENABLED=false
    [ "$(calls s3secrets)" -eq 0 ]
    [ "$(calls 'docker login')" -eq 1 ]
    : >"$CALLS"
    hook environment ECR_PLUGIN_ENABLED=false
    [ "$(calls s3secrets)" -eq 1 ]
    [ "$(calls 'docker login')" -eq 0 ]
    : >"$CALLS"
    hook pre-command DOCKER_LOGIN_PLUGIN_ENABLED=false
    [ "$(calls 'docker login')" -eq 0 ]
    hook pre-command
    [ "$(calls 'docker login')" -eq 1 ]
}

@test "a step switches nothing on that the pod has off, and chooses neither bucket nor policy" {
    pod SECRETS_PLUGIN_ENABLED=false ECR_PLUGIN_ENABLED=false DOCKER_LOGIN_PLUGIN_ENABLED=false BUILDKITE_SECRETS_BUCKET=pod
    hook environment "${all_on[@]}" POD_SECRETS_PLUGIN_ENABLED=true POD_ECR_PLUGIN_ENABLED=true
    hook pre-command "${all_on[@]}" DOCKER_LOGIN_USER=me DOCKER_LOGIN_PASSWORD=x
    [ "$(calls s3secrets)" -eq 0 ]
    [ "$(calls 'aws')" -eq 0 ]
    [ "$(calls 'docker login')" -eq 0 ]

    pod SECRETS_PLUGIN_ENABLED=true ECR_PLUGIN_ENABLED=true BUILDKITE_SECRETS_BUCKET=pod BUILDKITE_ECR_POLICY=none
    hook environment "${all_on[@]}"
    grep -q '^pod|' "$CALLS"
    [ "$(calls 'docker login')" -eq 0 ]
}

@test "no bucket: no secrets" {
    export_pod SECRETS_PLUGIN_ENABLED=true
    hook environment
    [ "$(calls s3secrets)" -eq 0 ]
}

@test "the helper gets the bucket, its region and the git credential helper, which exists" {
    export_pod "${all_on[@]}" BUILDKITE_SECRETS_BUCKET_REGION=us-east-2
    hook environment ECR_PLUGIN_ENABLED=off
    IFS='|' read -r bucket region credentials < <(grep '|' "$CALLS")
    [ "$bucket" = "the bucket" ]
    [ "$region" = us-east-2 ]
    [ -x "$credentials" ]
}

@test "a helper that fails fails the job, and leaves no Docker config" {
    export_pod "${all_on[@]}"
    SECRETS_STATUS=1 SECRETS="A_TOKEN='Secret'" run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"the secrets of bucket the bucket could not be read"* && $output != *Secret* ]]
    run ! config_folders
}

@test "an environment file that is not shell, fails or exits is an error, without a word of the file" {
    export_pod "${all_on[@]}"
    local file
    for file in 'A_TOKEN=Secret(' 'A_TOKEN=x Secret' 'A_TOKEN=Secret; false' 'A_TOKEN=Secret; exit 0' \
        'A_TOKEN=Secret; exit 3' 'set -u; echo $no_Secret' ': ${no:?Secret}' 'set -ex; A_TOKEN=Secret; false' \
        $'A_TOKEN=x Secret\nB=ok' $'A_TOKEN=Secret\nfalse\nB=ok'; do
        SECRETS=$file run hook environment
        echo "$file: $status $output"
        [ "$status" -ne 0 ]
        [[ $output == *"an environment file in bucket the bucket fails"* && $output != *Secret* ]]
        run ! config_folders
    done
}

@test "an environment file may declare, set options, and switch off" {
    export_pod "${all_on[@]}"
    SECRETS=$'set -euxo pipefail\ndeclare -x A="a b"\nB="c  d"\nECR_PLUGIN_ENABLED=false\n' run hook environment
    [ "$status" -eq 0 ]
    [ "$(calls 'docker login')" -eq 0 ]
    exported
    [ "$A" = "a b" ]
    [ "$B" = "c  d" ]
    [[ $- != *x* ]]
}

@test "an environment file that turns on tracing does not trace the logins after it" {
    export_pod "${all_on[@]}"
    SECRETS="set -eux" run hook environment
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(calls 'docker login')" -eq 1 ]
    [[ $output != *Secret* ]]
}

@test "a step that turns on tracing does not trace secrets" {
    export_pod "${all_on[@]}"
    export SECRETS="A_TOKEN='Secret'"
    run env SHELLOPTS=xtrace bash -c '. "$1"' wrapper "$agent/hooks/environment"
    [ "$status" -eq 0 ]
    [[ $output != *Secret* ]]
    run env SHELLOPTS=xtrace DOCKER_LOGIN_USER=me DOCKER_LOGIN_PASSWORD="$(printf Sec)ret" DOCKER_CONFIG="$BATS_TEST_TMPDIR" \
        bash -c '. "$1"' wrapper "$agent/hooks/pre-command"
    [ "$status" -eq 0 ]
    [[ $output != *Secret* ]]
}

# A process with the name of an ssh-agent, and the helper's output about it.
start_ssh_agent() {
    cp "$(command -v tail)" "$BATS_TEST_TMPDIR/ssh-agent"
    "$BATS_TEST_TMPDIR/ssh-agent" -f /dev/null >/dev/null 2>&1 3>&- &
    ssh_agent=$!
    disown
    export SECRETS="SSH_AUTH_SOCK=/tmp/ssh-x/agent.1; export SSH_AUTH_SOCK;
SSH_AGENT_PID=$ssh_agent; export SSH_AGENT_PID;
echo Agent pid $ssh_agent;
"
}
ends() { for _ in {1..50}; do kill -0 "$1" 2>/dev/null || return 0; command -p sleep 0.1; done; return 1; }

@test "the ssh-agent that the helper started runs during the job, and not after it" {
    export_pod "${all_on[@]}"
    start_ssh_agent
    hook environment
    kill -0 "$ssh_agent"
    exported
    [ "$SSH_AUTH_SOCK" = /tmp/ssh-x/agent.1 ]
    [ "$SSH_AGENT_PID" = "$ssh_agent" ]
    hook pre-exit
    ends "$ssh_agent"
}

@test "the ssh-agent ends, too, when the hook fails" {
    export_pod "${all_on[@]}"
    start_ssh_agent
    FAIL_STS=9 run hook environment
    [ "$status" -eq 1 ]
    ends "$ssh_agent"
}

@test "an ssh-agent of another process, and another process of that id, are left alone" {
    pod
    start_ssh_agent
    SSH_AGENT_PID=$ssh_agent hook environment
    SSH_AGENT_PID=$ssh_agent hook pre-exit
    kill -0 "$ssh_agent"
    ELASTIC_CI_STACK_SSH_AGENT_PID=$$ hook pre-exit
    ELASTIC_CI_STACK_SSH_AGENT_PID=999999999 hook pre-exit
}

@test "ECR: the registries of other accounts, too" {
    export_pod "${all_on[@]}" AWS_ECR_LOGIN_REGISTRY_IDS="222222222222, 333333333333"
    hook environment
    for account in 111111111111 222222222222 333333333333; do
        grep -q "docker login .* $account.dkr.ecr.eu-west-1.amazonaws.com$" "$CALLS"
    done
    [ "$(calls 'docker login')" -eq 3 ]
}

@test "ECR in China, and with AWS_DEFAULT_REGION alone" {
    pod ECR_PLUGIN_ENABLED=true BUILDKITE_ECR_POLICY=full
    hook environment AWS_DEFAULT_REGION=cn-north-1
    grep -q 'docker login .* 111111111111.dkr.ecr.cn-north-1.amazonaws.com.cn$' "$CALLS"
}

@test "ECR: two failures are retried, three fail the job with the reason" {
    export_pod "${all_on[@]}"
    FAIL_DOCKER_LOGIN=2 run hook environment
    [ "$status" -eq 0 ]
    [ "$(calls 'docker login')" -eq 3 ]
    rm "$CALLS".*
    FAIL_ECR=3 run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *AccessDenied*"no login to the ECR registry of account 111111111111 in eu-west-1"* ]]
    rm "$CALLS".*
    FAIL_STS=3 run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"no credentials"*"AWS does not tell whose account this is"* ]]
    rm "$CALLS".*
    FAIL_DOCKER_LOGIN=3 run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *unauthorized*"no login to the ECR registry"* && $output != *Secret* ]]
}

@test "ECR: no region, and an invalid account id" {
    pod ECR_PLUGIN_ENABLED=true BUILDKITE_ECR_POLICY=full
    run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"AWS_REGION is not set"* ]]
    run hook environment AWS_REGION=eu-west-1 AWS_ECR_LOGIN_REGISTRY_IDS="222222222222,evil.example"
    [ "$status" -eq 1 ]
    [[ $output == *'AWS_ECR_LOGIN_REGISTRY_IDS must be account ids'*'"evil.example"'* ]]
    run ! config_folders
}

@test "Docker's login: user, password and server with spaces" {
    export_pod DOCKER_LOGIN_PLUGIN_ENABLED=true
    hook environment
    exported
    run hook pre-command DOCKER_LOGIN_USER="a user" DOCKER_LOGIN_PASSWORD="  pass Secret  " \
        DOCKER_LOGIN_SERVER="registry.example:5000"
    [ "$status" -eq 0 ]
    [[ $output == *"Logging in to registry.example:5000"* && $output != *Secret* ]]
    grep -q 'docker login --username a user --password-stdin -- registry.example:5000$' "$CALLS"
    [ "$(cat "$STDIN")" = "  pass Secret  " ]
    [ -e "$DOCKER_CONFIG/config.json" ]
}

@test "Docker's login: no user, no login" {
    export_pod DOCKER_LOGIN_PLUGIN_ENABLED=true
    hook pre-command
    [ "$(calls 'docker login')" -eq 0 ]
}

@test "Docker's login: no password, and three failures, fail the job" {
    export_pod DOCKER_LOGIN_PLUGIN_ENABLED=true
    hook environment
    exported
    run hook pre-command DOCKER_LOGIN_USER=me
    [ "$status" -eq 1 ]
    [[ $output == *"DOCKER_LOGIN_PASSWORD is not"* ]]
    hook environment
    exported
    run hook pre-command DOCKER_LOGIN_USER=me DOCKER_LOGIN_PASSWORD=Secret FAIL_DOCKER_LOGIN=2
    [ "$status" -eq 0 ]
    rm "$CALLS".*
    run hook pre-command DOCKER_LOGIN_USER=me DOCKER_LOGIN_PASSWORD=Secret FAIL_DOCKER_LOGIN=3
    [ "$status" -eq 1 ]
    [[ $output == *unauthorized*"no login to Docker Hub as me"* && $output != *Secret* ]]
    [ "$(calls 'docker login')" -eq 6 ]
}

@test "the experimental flag is in the config only if it is set" {
    pod DOCKER_EXPERIMENTAL=true
    hook environment
    exported
    [ "$(jq -r .experimental "$DOCKER_CONFIG/config.json")" = enabled ]
    pod DOCKER_EXPERIMENTAL=false
    hook environment
    exported
    [ ! -e "$DOCKER_CONFIG/config.json" ]
}

@test "Docker has twenty tries, and then the reason is reported" {
    pod
    FAIL_DOCKER_PS=19 run hook environment
    [ "$status" -eq 0 ]
    [ "$(calls 'docker ps')" -eq 20 ]
    rm "$CALLS".*
    FAIL_DOCKER_PS=20 DOCKER_HOST=unix:///docker/docker.sock run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"Docker does not answer at unix:///docker/docker.sock: Cannot connect to the Docker daemon"* ]]
    [ "$(calls 'docker ps')" -eq 40 ]
    stand_in timeout '[ "$*" = "3 docker ps" ] || exit 99; exit 124'
    run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"Docker does not answer at its default address: nothing within three seconds"* ]]
}

@test "pre-exit removes the config of the job, and no other, without variables of the environment hook" {
    pod
    hook environment
    other=$(mktemp -d "/tmp/docker-config-another-$BUILDKITE_JOB_ID.XXXXXX")
    config_folders
    DOCKER_CONFIG="$other" hook pre-exit
    run ! config_folders
    [ -d "$other" ]
    rmdir "$other"
}

@test "pre-exit requires neither settings nor Docker nor a config" {
    rm "$bin/docker"
    hook pre-exit
}

@test "without start-agent, the hooks report what is missing" {
    run hook environment
    [ "$status" -eq 1 ]
    [[ $output == *"its agent must be started by start-agent"* ]]
    run hook pre-command
    [ "$status" -eq 1 ]
}

@test "git credentials: those of the requested host" {
    export S3_CONTENT=$'https://me:first@github.com\nhttps://you:second@gitlab.com\n'
    ask() {
        printf 'protocol=https\nhost=%s\n\n' "$2" \
            | "$agent/git-credential-s3-secrets" "the bucket" eu-west-1 "a b/git-credentials" "$1"
    }
    [ "$(ask get gitlab.com)" = $'username=you\npassword=second' ]
    [ -z "$(ask get example.com)" ]
    grep -q 'aws s3 cp --only-show-errors --region eu-west-1 s3://the bucket/a b/git-credentials ' "$CALLS"
    : >"$CALLS"
    [ -z "$(ask store gitlab.com)" ]
    [ ! -s "$CALLS" ]
    FAIL_S3=9 run ask get github.com
    [ "$status" -eq 1 ]
    [[ $output == *"git credentials s3://the bucket/a b/git-credentials could not be read"* ]]
}
