#!/usr/bin/env bats
# The Makefile as a user meets it, and scripts/stages.
# shellcheck disable=SC2154 # `run` assigns stderr.

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit
    # Those of the `make test` that runs this.
    unset MAKEFLAGS MAKELEVEL
}

@test "make lists the targets, each with what it does" {
    run --separate-stderr make
    [ "$status" -eq 0 ]
    [ "$output" = "$(make help)" ]
    # Every target but those that only others need.
    sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile | while read -r target; do
        case $target in
            deployment-tools | faketime | node | binary | binaries | valgrind) ;;
            *) grep -A 1 -x "make $target" <<<"$output" | grep -q '^    [A-Z0-9]' || { echo "$target has no ## line" && false; } ;;
        esac
    done
}

@test "make run gives the function QUEUE, TAGS and NAMESPACE" {
    run make --dry-run run QUEUE=linux,gpu TAGS=os=linux,team=web NAMESPACE=agents
    [[ $output == *"--env 'BUILDKITE_QUEUE=linux,gpu' --env 'BUILDKITE_AGENT_TAGS=os=linux,team=web'"* ]]
    [[ $output == *"--env KUBERNETES_NAMESPACE=agents"* ]]
    run make --dry-run run
    [[ $output != *--env* ]]
}

@test "make render prints the Job of STEP or EVENT, with definitions that are not compiled in" {
    local definition=cli/tests/definitions/own.yaml
    run --separate-stderr make render STEP='queue=gpu pod-definition=own' DEFINITION="$definition ${definition%/*}/deploy.yaml"
    [ "$status" -eq 0 ]
    [ "$output" = "$(cat cli/tests/golden/own.yaml)" ]
    [[ $stderr == *"warning: "*"lifecycle.preStop is absent"* ]]
    run make render EVENT=events/job-scheduled.json NAMESPACE=agents
    [[ $output == *$'\n  namespace: agents\n'* ]]
    run --separate-stderr make render STEP='queue=gpu' QUEUE=linux
    [ "$status" -ne 0 ]
    [ -z "$output" ]
    [[ $stderr == *"queue=gpu is not served here (BuildkiteQueue is linux)"* ]]
}

@test "make check-definitions fails with the file and the field of a wrong definition" {
    run make check-definitions
    [ "$status" -eq 0 ]
    sed s/Never/Always/ pod-definitions/default.yaml >"$BATS_TEST_TMPDIR/default.yaml"
    run make check-definitions DEFINITIONS="pod-definitions $BATS_TEST_TMPDIR"
    [ "$status" -ne 0 ]
    [[ $output == "$BATS_TEST_TMPDIR/default.yaml: template.spec.restartPolicy must be Never"* ]]
}

@test "make test runs the stages without a release build first" {
    run make --dry-run test
    [[ $output == *"scripts/stages test-scripts test-quick "*" instructions test-deployment"* ]]
}

@test "stages prints each name and time, and stops at the first that fails" {
    printf 'good:\n\t@echo made\nbad:\n\tfalse\n' >"$BATS_TEST_TMPDIR/Makefile"
    cd "$BATS_TEST_TMPDIR"
    run "$BATS_TEST_DIRNAME/../../scripts/stages" good good
    [ "$status" -eq 0 ]
    [[ $output == "=== make good"$'\n'made$'\n'"===     0 s  make good"*"=== all 2 stages passed in 0 s"* ]]
    run "$BATS_TEST_DIRNAME/../../scripts/stages" bad good
    [ "$status" -eq 1 ]
    [[ $output == *"=== make bad failed after 0 s" ]]
    [[ $output != *made* ]]
}
