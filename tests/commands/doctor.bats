#!/usr/bin/env bats
# `doctor`, with a stand-in for sam. tests/deployment/test_local_invoke.py has it read the real answer of `sam local invoke`.

bats_require_minimum_version 1.5.0

setup() {
    mkdir "$BATS_TEST_TMPDIR/bin"
    export PATH="$BATS_TEST_TMPDIR/bin:$PATH" CALLS="$BATS_TEST_TMPDIR/calls" ANSWER="$BATS_TEST_TMPDIR/answer"
    cat >"$BATS_TEST_TMPDIR/bin/sam" <<'END'
#!/usr/bin/env bash
echo "$*" >"$CALLS"
echo "START RequestId: 1" >&2
cat "$ANSWER"
END
    chmod +x "$BATS_TEST_TMPDIR/bin/sam"
    well='{"check":"settings","ok":true,"found":"jobs of kubernetes"}'
    unseen='{"check":"events","ok":null,"found":"cannot be seen","fix":"aws events describe-rule"}'
    wrong='{"check":"permissions","ok":false,"found":"missing: create jobs","fix":"# a comment\nkubectl apply"}'
}

doctor() { "$BATS_TEST_DIRNAME/../../doctor" "$@"; }

@test "each check is a line, with the commands of those that are not well below it" {
    echo "{\"ok\":false,\"checks\":[$well,$unseen,$wrong]}" >"$ANSWER"
    run --separate-stderr doctor stack
    [ "$status" -eq 1 ]
    diff - <(echo "$output") <<'END'
✓ settings                   jobs of kubernetes
? events                     cannot be seen
                             aws events describe-rule
✗ permissions                missing: create jobs
                             # a comment
                             kubectl apply
END
    [[ $(cat "$CALLS") == "remote invoke AgentScheduler --stack-name stack --event-file "*/events/doctor.json ]]
}

@test "what cannot be seen does not fail it" {
    echo "{\"ok\":true,\"checks\":[$well,$unseen]}" >"$ANSWER"
    run --separate-stderr doctor --region eu-west-1 stack
    [ "$status" -eq 0 ]
    [[ $(cat "$CALLS") == *"--region eu-west-1" ]]
}

@test "the answer is found between other lines, and on standard input" {
    printf 'START RequestId: 1\n{"level":"INFO"}\n%s\nEND\n' "{\"ok\":true,\"checks\":[$well]}" >"$ANSWER"
    run doctor - <"$ANSWER"
    [ "$status" -eq 0 ]
    [[ $output == "✓ settings"* ]]
}

@test "a function that does not start fails with its error, and no answer is another status" {
    echo '{"errorType":"InvalidConfig","errorMessage":"BuildkiteQueue must be one queue key"}' >"$ANSWER"
    run --separate-stderr doctor stack
    [ "$status" -eq 1 ]
    [[ $output == "✗ InvalidConfig"*"BuildkiteQueue must be"* ]]
    : >"$ANSWER"
    run --separate-stderr doctor stack
    [ "$status" -eq 2 ]
    [ -z "$output" ]
}
