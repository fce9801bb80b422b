#!/usr/bin/env bats
# The entry point of the image.
# shellcheck disable=SC2016,SC2030,SC2031,SC2154 # The helper's variables, a process of each test, and shell in strings.

bats_require_minimum_version 1.5.0
load helper

start() { "$agent/start-agent" start; }
# A variable of the agent's process.
after() { sed -n "s/^$1=//p" "$AFTER"; }

@test "it becomes the agent, with its arguments and its status" {
    AGENT_STATUS=27 run "$agent/start-agent" start --debug "two words"
    [ "$status" -eq 27 ]
    grep -qx 'buildkite-agent start --debug two words' "$CALLS"
    # The same process: a signal reaches the agent.
    bash -c 'echo "$$" >"$AFTER.before"; exec "$1" start' bash "$agent/start-agent"
    diff "$AFTER.before" "$AFTER.pid"
}

@test "args: [] is refused" {
    run "$agent/start-agent"
    [ "$status" -eq 1 ]
    [[ $output == *"args: [start]"* ]]
}

@test "tags are added to those that are there" {
    BUILDKITE_AGENT_TAGS=queue=kubernetes,os=linux BUILDKITE_STACK_NAME="my stack" BUILDKITE_STACK_VERSION=1.2.3 start
    [ "$(after BUILDKITE_AGENT_TAGS)" = "queue=kubernetes,os=linux,docker=29.8.2,stack=my stack,buildkite-eks-stack=1.2.3" ]
}

@test "without tags, stack and version, there is Docker's alone" {
    start
    [ "$(after BUILDKITE_AGENT_TAGS)" = docker=29.8.2 ]
}

@test "a comma in a tag is refused" {
    BUILDKITE_STACK_NAME=a,queue=b run start
    [ "$status" -eq 1 ]
    [[ $output == *'BUILDKITE_STACK_NAME must have no comma'*'"a,queue=b"'* ]]
}

@test "an unknown ECR policy, no docker, and settings that cannot be written fail the start" {
    BUILDKITE_ECR_POLICY=all run start
    [ "$status" -eq 1 ]
    [[ $output == *'BUILDKITE_ECR_POLICY must be none, readonly, poweruser or full, got "all"'* ]]
    FAIL_DOCKER_VERSION=1 run start
    [ "$status" -eq 1 ]
    [[ $output == *"docker --version failed"* ]]
    rm -f "$agent/settings"
    mkdir "$agent/settings"
    run start
    [ "$status" -eq 1 ]
    [[ $output == *"cannot write "*"/settings"* ]]
    [ "$(calls buildkite-agent)" -eq 0 ]
}

@test "each of the two region variables is the default of the other" {
    AWS_REGION=eu-west-1 start
    [ "$(after AWS_DEFAULT_REGION)" = eu-west-1 ]
    AWS_DEFAULT_REGION=eu-west-2 start
    [ "$(after AWS_REGION)" = eu-west-2 ]
    AWS_REGION=eu-west-1 AWS_DEFAULT_REGION=eu-west-2 start
    [ "$(after AWS_REGION)-$(after AWS_DEFAULT_REGION)" = eu-west-1-eu-west-2 ]
    start
    [ -z "$(after AWS_REGION)" ]
}

@test "settings keep spaces, quotes and shell syntax" {
    BUILDKITE_SECRETS_BUCKET='a b"c'\''$(touch x)' start
    # shellcheck disable=SC1091
    . "$agent/settings"
    [ "$POD_BUILDKITE_SECRETS_BUCKET" = 'a b"c'\''$(touch x)' ]
    [ "$POD_BUILDKITE_ECR_POLICY" = none ]
    [ ! -e x ]
}

@test "the token reaches the agent, and neither settings, output, arguments nor bootstrap script" {
    export BUILDKITE_AGENT_TOKEN=token-Secret
    export S3_CONTENT="#!/usr/bin/env bash
{ env; cat <&3; } >'$BATS_TEST_TMPDIR/bootstrap env' || true"
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT=s3://bucket/bootstrap run start 3< <(echo pipe-Secret)
    [ "$status" -eq 0 ]
    [[ $output != *Secret* ]]
    [ "$(after BUILDKITE_AGENT_TOKEN)" = token-Secret ]
    [ -s "$BATS_TEST_TMPDIR/bootstrap env" ]
    run ! grep -q Secret "$agent/settings" "$CALLS" "$BATS_TEST_TMPDIR/bootstrap env"
}

# A curl that writes $SCRIPT to its output.
with_curl() {
    stand_in curl '
        failing CURL && { echo "curl: (22) 404" >&2; exit 22; }
        while [ "$1" != --output ]; do shift; done
        printf %s "$SCRIPT" >"$2"'
}

@test "a bootstrap script of S3 and of the web runs before the agent, and is removed" {
    with_curl
    export TMPDIR="$BATS_TEST_TMPDIR/tmp dir" SCRIPT=$'#!/bin/sh\necho "it ran" >>"$CALLS"\n'
    export S3_CONTENT=$SCRIPT
    mkdir "$TMPDIR"
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT="s3://bucket/a key" start
    [[ $(cat "$CALLS") == *'aws s3 cp --only-show-errors s3://bucket/a key '*$'it ran\nbuildkite-agent start' ]]
    [ -z "$(ls -A "$TMPDIR")" ]
    : >"$CALLS"
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT="https://example.com/bootstrap" start
    [[ $(cat "$CALLS") == *'curl '*' -- https://example.com/bootstrap'*$'it ran\nbuildkite-agent start' ]]
    [ -z "$(ls -A "$TMPDIR")" ]
}

@test "a bootstrap script that cannot be fetched, or fails, fails the start, and its address is shown without credentials" {
    with_curl
    export TMPDIR="$BATS_TEST_TMPDIR/tmp" SCRIPT=$'#!/bin/sh\nexit 7\n'
    mkdir "$TMPDIR"
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT=s3://bucket/none FAIL_S3=1 run start
    [ "$status" -eq 1 ]
    [[ $output == *"the bootstrap script s3://bucket/none could not be fetched"* ]]
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT="https://me:Secret@example.com/x?X-Amz-Signature=Secret" FAIL_CURL=1 \
        run env SHELLOPTS=xtrace "$agent/start-agent" start
    [ "$status" -eq 1 ]
    [[ $output == *"the bootstrap script https://example.com/x could not be fetched"* && $output != *Secret* ]]
    BUILDKITE_ELASTIC_BOOTSTRAP_SCRIPT="https://example.com/x?Secret" run start
    [ "$status" -eq 1 ]
    [[ $output == *"the bootstrap script https://example.com/x failed with status 7"* && $output != *Secret* ]]
    [ "$(calls buildkite-agent)" -eq 0 ]
    [ -z "$(ls -A "$TMPDIR")" ]
}
