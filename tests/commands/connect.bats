#!/usr/bin/env bats
# `connect`, with stand-ins for aws, kubectl and eksctl. tests/deployment/test_deploy.py runs it with the real AWS CLI, on moto.
# shellcheck disable=SC2016,SC2030,SC2031 # Shell in strings, and a process of each test.

bats_require_minimum_version 1.5.0

subject=buildkite-on-demand-agent-scheduler
role=arn:aws:iam::111122223333:role/stack-Role-1

setup() {
    bin="$BATS_TEST_TMPDIR/bin"
    export CALLS="$BATS_TEST_TMPDIR/calls" APPLIED="$BATS_TEST_TMPDIR/applied" KUBECONFIG=mine
    mkdir "$bin"
    : >"$CALLS"
    PATH="$bin:$PATH"
    # What there is: nothing of ours in a cluster with access entries.
    export STATUS=CREATE_COMPLETE MODE=API ENTRY='' MAPPING='' NAMESPACE='' NAMES='' DIFF=1 SECRET=buildkite-agent-token
    stand_in aws '
        case "$1 $2" in
            "cloudformation describe-stacks")
                printf "%s\t%s\n" Status "$STATUS" Id arn:aws:cloudformation:eu-west-1:111122223333:stack/stack/1 \
                    KubernetesClusterIdentifier example-cluster KubernetesNamespace agents AgentTokenSecretName "$SECRET" \
                    JobTokens "${JOB_TOKENS:-false}" \
                    RoleArn arn:aws:iam::111122223333:role/stack-Role-1 ;;
            "eks describe-cluster") echo "$MODE" ;;
            "eks describe-access-entry") [ -n "$ENTRY" ] && printf "$ENTRY" || { echo "$ENTRY_ERROR" >&2; exit 254; } ;;
        esac'
    export ENTRY_ERROR='An error occurred (ResourceNotFoundException): no such entry'
    stand_in kubectl '
        [ "$KUBECONFIG" != mine ] || exit 9
        case "$1 $2" in
            "get namespace") printf %s "$NAMESPACE" ;;
            "get role") printf %s "$NAMES" ;;
            "diff --filename") exit "$DIFF" ;;
            "apply --filename") cat "$3" >"$APPLIED" ;;
        esac'
    stand_in eksctl '[ "$1" = create ] || { [ -n "$MAPPING" ] && echo "$MAPPING"; }'
}

# `stand_in NAME SCRIPT`; FAIL="NAME WORD" fails the calls with that word.
stand_in() {
    cat >"$bin/$1" <<END
#!/usr/bin/env bash
echo "$1 \$*" >>"\$CALLS"
[[ "$1 \$*" != \${FAIL:-nothing}* ]] || { echo "AccessDenied" >&2; exit 255; }
$2
END
    chmod +x "$bin/$1"
}

connect() { "$BATS_TEST_DIRNAME/../../connect" "$@"; }
# The calls that change something.
changes() { grep -E 'create|update-access|apply|delete' "$CALLS" || true; }

@test "after a yes it maps the role, creates the namespace and grants the permissions" {
    run connect stack <<<y
    [ "$status" -eq 0 ]
    [[ $output == *"this is to do in the cluster example-cluster (eu-west-1)"*"map the role $role"*"done: grant"*"stack is connected"* ]]
    diff <(changes | sed 's|/[^ ]*role.yaml|FILE|') - <<END
aws eks create-access-entry --cluster-name example-cluster --principal-arn $role --username $subject --kubernetes-groups $subject
kubectl create namespace agents
kubectl apply --filename FILE --selector agent-scheduler.buildkite.com/job-tokens!=true --namespace agents
END
    diff "$APPLIED" "$BATS_TEST_DIRNAME/../../buildkite-role.yaml"
}

@test "a stack with JobTokens gets the permissions for those" {
    JOB_TOKENS=true run connect --yes stack
    [ "$status" -eq 0 ]
    [[ $output == *"for a Secret for each Job"* ]]
    changes | grep "^kubectl apply .* --selector agent-scheduler.buildkite.com/job-tokens!=false "
}

@test "without a yes, and with --dry-run, it changes nothing" {
    for answer in n ''; do
        run connect stack <<<"$answer"
        [ "$status" -eq 1 ]
        [[ $output == *"nothing is done"* ]]
    done
    run connect stack </dev/null
    [[ $output == *"--yes does not ask"* ]]
    run connect --dry-run stack
    [ "$status" -eq 0 ]
    [[ $output == *"create the namespace agents"* ]]
    [ -z "$(changes)" ]
}

@test "what is done already is skipped" {
    ENTRY="$subject\t$subject" NAMESPACE=namespace/agents run connect --yes stack
    [ "$(changes | wc -l)" -eq 1 ]
    [[ $(changes) == "kubectl apply"* ]]
    : >"$CALLS"
    ENTRY="$subject\t$subject" NAMESPACE=namespace/agents DIFF=0 run connect stack
    [ "$status" -eq 0 ]
    [[ $output == *"nothing to do"* ]]
    [ -z "$(changes)" ]
}

@test "an access entry for another user is changed" {
    ENTRY='arn:role\tNone' run connect --yes stack
    [ "$status" -eq 0 ]
    [[ $(changes) == "aws eks update-access-entry"*"--username $subject"* ]]
}

@test "a cluster that maps roles in aws-auth gets an identity mapping, once" {
    for mode in CONFIG_MAP None; do
        MODE=$mode run connect --yes stack
        [ "$status" -eq 0 ]
    done
    [ "$(grep -cx "eksctl create iamidentitymapping --cluster example-cluster --region eu-west-1 --arn $role --username $subject --group $subject" "$CALLS")" -eq 2 ]
    : >"$CALLS"
    MODE=CONFIG_MAP MAPPING="$role $subject" run connect --yes stack
    [[ $(changes) != *eksctl* ]]
}

@test "the role gets the stack's Secret, and keeps those of other stacks" {
    SECRET=gpu-token run connect --yes stack
    grep -q 'resourceNames: \[gpu-token\]' "$APPLIED"
    SECRET=gpu-token NAMES='buildkite-agent-token web-token' run connect --yes stack
    grep -q 'resourceNames: \[buildkite-agent-token,gpu-token,web-token\]' "$APPLIED"
}

@test "errors name what failed, with the reason" {
    FAIL='aws cloudformation' run connect stack
    [[ $output == *"cannot read the stack stack; check its name, your credentials and the region (--region): AccessDenied"* ]]
    FAIL='aws eks describe-cluster' run connect stack
    [[ $output == *"cannot read the cluster example-cluster in eu-west-1: AccessDenied"* ]]
    FAIL='kubectl get namespace' run connect stack
    [[ $output == *"cannot read the namespace agents of the cluster example-cluster: AccessDenied"* ]]
    FAIL='kubectl create' run connect --yes stack
    [[ $output == *"cannot create the namespace agents: AccessDenied"* ]]
    ENTRY_ERROR=AccessDenied run connect stack
    [[ $output == *"cannot read the access entry of the role $role in the cluster example-cluster: AccessDenied"* ]]
    STATUS=ROLLBACK_COMPLETE run connect stack
    [[ $output == *"the stack stack is ROLLBACK_COMPLETE: wait for its deploy, or deploy it again"* ]]
    [ "$status" -eq 1 ]
}

@test "--region is the region of the stack, for every call" {
    stand_in aws 'echo "$AWS_REGION $AWS_DEFAULT_REGION" >>"$APPLIED"; exit 1'
    run connect --region ap-northeast-1 stack
    [ "$(cat "$APPLIED")" = "ap-northeast-1 ap-northeast-1" ]
}

@test "a wrong command line prints the usage" {
    for options in '' '--what stack' 'one two' '--region'; do
        # shellcheck disable=SC2086
        run connect $options
        [ "$status" -eq 2 ]
        [[ $output == usage:* ]]
    done
    run connect --help
    [ "$status" -eq 0 ]
}
