set -e
agent="${1:-$(command -v buildkite-agent || true)}"
[ -f "$agent" ] || {
    echo "The image of the pod definition has no ${1:-buildkite-agent in its PATH} to put into the image of the step." >&2
    exit 1
}
for file in /buildkite/*; do
    case "$file" in
        /buildkite/builds | /buildkite/buildkite-agent) ;;
        *) [ ! -e "$file" ] || cp -R "$file" /agent-scheduler/ ;;
    esac
done
rm -f /agent-scheduler/buildkite-agent
cp "$agent" /agent-scheduler/buildkite-agent
tini="$(command -v tini || true)"
if [ -f "$tini" ]; then
    cp "$tini" /agent-scheduler/tini
    [ -p /agent-scheduler/token ] || mkfifo /agent-scheduler/token
fi
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt /agent-scheduler/; fi
touch /agent-scheduler/buildkite-agent.cfg
chmod -R a+rwX /agent-scheduler/*
