# shellcheck shell=bash disable=SC2016
# Runs the scripts of pod-definitions/elastic-ci-stack/agent as the image and the agent do, with stand-ins for the commands that
# they call. A stand-in appends its arguments to $CALLS, one call a line, and fails or answers as variables of the test say.

setup() {
    agent="$BATS_TEST_TMPDIR/etc with space/buildkite-agent"
    bin="$BATS_TEST_TMPDIR/bin"
    export CALLS="$BATS_TEST_TMPDIR/calls" STDIN="$BATS_TEST_TMPDIR/stdin" AFTER="$BATS_TEST_TMPDIR/after"
    mkdir -p "$agent" "$bin"
    cp -r "$BATS_TEST_DIRNAME/../../pod-definitions/elastic-ci-stack/agent/." "$agent"
    : >"$CALLS"
    : >"$STDIN"
    # Unique, as the folder of the Docker config is in /tmp and named after it.
    export BUILDKITE_JOB_ID="test-$$-$BATS_TEST_NUMBER-$RANDOM" BUILDKITE_PIPELINE_SLUG=pipeline
    unset AWS_REGION AWS_DEFAULT_REGION AWS_ECR_LOGIN_REGISTRY_IDS DOCKER_HOST DOCKER_CONFIG BUILDKITE_AGENT_TAGS
    unset DOCKER_LOGIN_USER DOCKER_LOGIN_PASSWORD DOCKER_LOGIN_SERVER SSH_AGENT_PID SSH_AUTH_SOCK
    PATH="$bin:$PATH"

    stand_in sleep 'exit 0'
    # FAIL_DOCKER_PS, FAIL_DOCKER_LOGIN: how many calls fail before one succeeds.
    stand_in docker '
        case $1 in
            --version) echo "Docker version 29.8.2, build 1234567"; exit "${FAIL_DOCKER_VERSION:-0}" ;;
            ps) failing DOCKER_PS && { echo "Cannot connect to the Docker daemon" >&2; exit 1; } ;;
            login)
                { cat; echo; } >>"$STDIN"
                failing DOCKER_LOGIN && { echo "unauthorized" >&2; exit 1; }
                echo "{\"auths\": {}}" >"$DOCKER_CONFIG/config.json"
                echo "Login Succeeded"
                ;;
        esac
        exit 0'
    stand_in aws '
        case "$1 $2" in
            "sts get-caller-identity") failing STS && { echo "no credentials" >&2; exit 255; }; echo 111111111111 ;;
            "ecr get-login-password") failing ECR && { echo "AccessDenied" >&2; exit 255; }; echo ecr-Secret ;;
            "s3 cp")
                failing S3 && { echo "fatal error: 404" >&2; exit 1; }
                for last; do :; done
                printf %s "$S3_CONTENT" >"$last"
                ;;
        esac
        exit 0'
    # SECRETS: what it prints; SECRETS_STATUS: how it ends.
    stand_in s3secrets-helper '
        plugin=BUILDKITE_PLUGIN_S3_SECRETS bucket=${plugin}_BUCKET region=${plugin}_REGION credentials=${plugin}_CREDHELPER
        echo "${!bucket}|${!region}|${!credentials}" >>"$CALLS"
        printf %s "${SECRETS:-}"
        exit "${SECRETS_STATUS:-0}"'
    stand_in buildkite-agent '
        env >"$AFTER"
        echo "$$" >"$AFTER.pid"
        exit "${AGENT_STATUS:-0}"'
}

teardown() {
    rm -rf "/tmp/docker-config-$BUILDKITE_JOB_ID".*
    if [ -n "${ssh_agent:-}" ]; then kill "$ssh_agent" 2>/dev/null || true; fi
}

# `stand_in NAME SCRIPT`: `failing X` in it is true for as many calls as $FAIL_X says.
stand_in() {
    cat >"$bin/$1" <<END
#!/usr/bin/env bash
{ set +x; } 2>/dev/null
echo "$1 \$*" >>"\$CALLS"
failing() {
    local times=FAIL_\$1 count="\$CALLS.\$1"
    echo >>"\$count"
    [ "\$(wc -l <"\$count")" -le "\${!times:-0}" ]
}
$2
END
    chmod +x "$bin/$1"
}

# Starts the pod's agent with these settings of the pod definition: `pod NAME=value ...`.
pod() { env "$@" "$agent/start-agent" start >/dev/null; : >"$CALLS"; }

# Runs a hook as the agent does: sourced by a wrapper, whose environment goes to the next hook. Arguments are the step's own
# variables: `hook environment NAME=value ...`.
hook() {
    local name=$1
    shift
    env "$@" bash -c '. "$1"; status=$?; export -p | sed "s/^declare -x /export /" >"$2"; exit "$status"' \
        wrapper "$agent/hooks/$name" "$BATS_TEST_TMPDIR/exported"
}

# Loads what the hooks before exported; nothing, if they ended by `exit`.
# shellcheck disable=SC1091
exported() { [ ! -e "$BATS_TEST_TMPDIR/exported" ] || . "$BATS_TEST_TMPDIR/exported"; }

calls() { grep -c -- "$1" "$CALLS" || true; }

config_folders() { compgen -G "/tmp/docker-config-$BUILDKITE_JOB_ID.*"; }
