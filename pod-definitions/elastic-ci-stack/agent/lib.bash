# shellcheck shell=bash
# What the hooks share. The agent sources a hook, in a shell of its own, and passes what it exports on to the next; a hook
# that ends by `exit` passes nothing on.

# A step can have every command traced by SHELLOPTS, and secrets would be in the trace.
{ set +x; } 2>/dev/null

here=$(dirname "${BASH_SOURCE[0]}")

fail() {
    echo "+++ elastic-ci-stack: $*" >&2
    clean_up
    exit 1
}

# Takes away what the job has of its own. By the job's id, so that it needs nothing that an earlier hook passed on.
clean_up() {
    local pid=${ELASTIC_CI_STACK_SSH_AGENT_PID:-}
    rm -rf "/tmp/docker-config-${BUILDKITE_JOB_ID:?}".*
    if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = ssh-agent ]; then
        kill "$pid" || true
    fi
}

# The pod's settings, as POD_NAME: those in the environment may be the step's.
read_settings() {
    # shellcheck source=/dev/null
    . "$here/settings" || fail "there are no settings of the pod; its agent must be started by start-agent"
}

is_on() {
    case ${1,,} in
        on | 1 | true) ;;
        *) return 1 ;;
    esac
}

# Whether the pod has a plugin on, and the step does not have it off: `enabled ECR` asks for ECR_PLUGIN_ENABLED.
enabled() {
    local pod=POD_${1}_PLUGIN_ENABLED step=${1}_PLUGIN_ENABLED
    is_on "${!pod-}" && is_on "${!step-true}"
}

# `try TIMES SECONDS command...`: until it succeeds, with that pause.
try() {
    local times=$1 pause=$2 try
    shift 2
    for ((try = 1; ; try++)); do
        if "$@"; then return 0; fi
        if ((try >= times)); then return 1; fi
        sleep "$pause"
    done
}
