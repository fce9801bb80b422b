# Every command of this project. `make` lists them.

EVENT ?= events/job-scheduled.json
export CARGO_TARGET_DIR ?= $(CURDIR)/target

STARTS ?= 40
EVENTS ?= 1000
LOAD_EVENTS ?= 10000
SOAK_EVENTS ?= 100000
DEFINITIONS ?= pod-definitions
TESTS ?= tests/deployment
FUZZ_SECONDS ?= 60
SECONDS ?= 60
FROM ?= 0
JOBS ?= 100000
TARGETS ?= event query_rules pod_definition certificate_authority api_server
# The scripts of the image; its Dockerfile is no shell.
HOOKS = $(filter-out %/Dockerfile %/hooks,$(wildcard pod-definitions/elastic-ci-stack/agent/* pod-definitions/elastic-ci-stack/agent/hooks/*))
PYTHON = tests/deployment tests/lint doctor scripts/package scripts/release scripts/third-party-notices
FUNCTION = $(CARGO_TARGET_DIR)/release/agent-scheduler
CLI = cargo run --quiet --package agent-scheduler-cli --
FLOOR = $(CARGO_TARGET_DIR)/release/floor
BENCH = $(CARGO_TARGET_DIR)/lab/bench
NODE_PACKAGES = containerd runc containernetworking-plugins debootstrap busybox-static jq iproute2
# The long runs, with what the tests have built.
SHORT = $(CARGO_TARGET_DIR)/debug/bench
SHORT_EVENT = --function $(CARGO_TARGET_DIR)/debug/agent-scheduler --event events/job-scheduled.json

# What CloudFormation writes on every resource.
STACK_TAGS = $(shell sed -n 's/^tags = "\(.*\)"/\1/p' samconfig.toml)
# The quick ones first.
STAGES = test-scripts test-quick control-plane test-control-plane test-runs instructions test-deployment

.PHONY: help run render check-definitions package build deploy deploy-guided connect doctor release dashboard test $(STAGES) \
	deployment-tools docker-engine faketime test-node test-node-all node bench burst fuzz load soak cold-starts simulate scale binary binaries valgrind lint

## Lists the targets.
help:
	@awk '/^## / { text = text "    " substr($$0, 4) "\n" } /^[a-z-]+:/ && text { sub(":.*", ""); printf "make %s\n%s", $$0, text } \
		!/^## / { text = "" }' $(MAKEFILE_LIST)

## One event through the real function, with stand-ins for AWS, Lambda and Kubernetes: EVENT=events/… picks another event.
## QUEUE=… and TAGS=… are the function's BuildkiteQueue and BuildkiteAgentTags, and NAMESPACE=… its KubernetesNamespace.
## CLUSTER=real uses a real control plane. CONTEXT=… uses a cluster of your kubeconfig, where the pod gets the Buildkite agent
## token in TOKEN=…; the namespace must exist there.
run: export BUILDKITE_AGENT_TOKEN := $(TOKEN)
run: binaries
	@$(CARGO_TARGET_DIR)/debug/lab run --function $(CARGO_TARGET_DIR)/debug/agent-scheduler --event $(EVENT) \
		$(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(CONTEXT),--context $(CONTEXT)) \
		$(if $(NAMESPACE),--env KUBERNETES_NAMESPACE=$(NAMESPACE)) \
		$(if $(QUEUE),--env 'BUILDKITE_QUEUE=$(QUEUE)') $(if $(TAGS),--env 'BUILDKITE_AGENT_TAGS=$(TAGS)')

## The Job that a step gets, without AWS, cluster or network: STEP='queue=kubernetes pod-definition=node image=node:24', or EVENT=….
## DEFINITION=… is a file or folder that is not in pod-definitions/, or several. PIPELINE=… is the step's pipeline; QUEUE=…, TAGS=…
## and NAMESPACE=… are as above.
render:
	@$(CLI) render $(if $(STEP),--step '$(STEP)',--event $(EVENT)) $(if $(DEFINITION),--definition $(DEFINITION)) \
		$(if $(PIPELINE),--pipeline $(PIPELINE)) $(if $(QUEUE),--queue '$(QUEUE)') $(if $(TAGS),--tags '$(TAGS)') \
		$(if $(NAMESPACE),--namespace $(NAMESPACE))

## All that is wrong with the pod definitions of DEFINITIONS=…, files or folders.
check-definitions:
	@$(CLI) check-definitions $(DEFINITIONS)

## Writes dist/agent-scheduler-VERSION: the function for x86_64 and arm64, and all that a deploy without a compiler needs.
package: deployment-tools
	@PATH="$$(tests/deployment/tools):$$PATH"; scripts/package

## Builds the function for a deploy from this clone, with sam, cargo-lambda and zig.
build:
	sam build

## Builds and deploys, with a prompt for each setting. The answers are in samconfig.local.toml, which git ignores.
deploy-guided: build
	@[ -e samconfig.local.toml ] || grep -v tags samconfig.toml >samconfig.local.toml
	sam deploy --guided --config-file samconfig.local.toml --tags "$(STACK_TAGS)"

## Builds and deploys with those answers; OPTIONS="--parameter-overrides JobTtlSeconds=900" changes one.
deploy: build
	sam deploy --config-file samconfig.local.toml --tags "$(STACK_TAGS)" $(OPTIONS)

## Gives the function of STACK=… access to its cluster; OPTIONS=--dry-run only prints what is to do.
connect:
	@./connect $(OPTIONS) $(STACK)

## Has the function of STACK=… examine its own set-up, and prints what is wrong with its fix.
doctor:
	@./doctor $(STACK)

## Commits and tags VERSION=…, written to every file that has it. Needs a tree without changes; pushes nothing.
release:
	@scripts/release $(VERSION)

## Draws docs/dashboard.svg: the dashboard of template.yml, with sample metrics.
dashboard: deployment-tools
	PATH="$$(tests/deployment/tools):$$PATH"; AWS_DEFAULT_REGION=us-east-1 tests/deployment/dashboard.py >docs/dashboard.svg

## Every test, the quick ones first; installs what it needs, and prints the stages with their times.
test:
	@scripts/stages $(STAGES)

## Builds the programs of a Kubernetes control plane, once per machine; ten minutes on two cores.
control-plane:
	@tests/control-plane/build >/dev/null

## The tests on a real control plane, and those that set clocks forward.
test-control-plane: control-plane faketime
	cargo test --workspace --test control_plane --test process

## The function's Jobs in real pods with the real Buildkite agent, on a real node beside a real control plane. Needs root and
## cgroups, and is skipped without them. It installs containerd, and what else a node needs, from Debian.
test-node:
	@if [ "$$(id -u)" = 0 ] && unshare --mount --pid --net --fork true && ls -d /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | grep -q .; \
		then $(MAKE) --no-print-directory node; \
		else echo "SKIPPED: make test-node needs root, namespaces and cgroups" >&2; fi

## The same, and what takes minutes: until an agent gives up, or a node that is removed has lost its pods.
test-node-all:
	@$(MAKE) --no-print-directory test-node IGNORED=--include-ignored

node:
	@dpkg --status $(NODE_PACKAGES) >/dev/null 2>&1 || { apt-get update && apt-get install -y $(NODE_PACKAGES); }
	@tests/control-plane/build >/dev/null
	@tests/node/images >/dev/null
	cargo test --test node -- --test-threads 32 $(IGNORED)

## Short forms of `make load`, `make soak` and `make cold-starts`.
test-runs: control-plane binaries
	@$(SHORT) load --cluster real --events 300 $(SHORT_EVENT)
	@$(SHORT) soak --events 3000 $(SHORT_EVENT)
	@$(SHORT) cold-starts --starts 40 --calls 10 --reserved 10 $(SHORT_EVENT)

faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y faketime; } \
		|| { echo "install faketime: it puts a function's clock forward" >&2; exit 1; }

## The scripts of src/pod, of the elastic-ci-stack image, `connect`, `doctor` and this file, with bats and shellcheck; needs busybox, jq and git, too.
test-scripts:
	@( for tool in bats shellcheck busybox jq git; do command -v $$tool || exit 1; done ) >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y bats shellcheck busybox jq git; } \
		|| { echo "install bats (1.5 or newer), shellcheck, busybox, jq and git" >&2; exit 1; }
	shellcheck --external-sources $(HOOKS) connect scripts/stages tests/elastic-ci-stack/* tests/commands/* tests/pod/* \
		tests/node/images tests/node/agent-image/*.sh tests/node/agent-image/*-entrypoint tests/node/elastic-ci-stack/*
	shellcheck --shell=bash tests/lab/src/node/start.sh
	shellcheck --shell=sh src/pod/*.sh
	bats tests/elastic-ci-stack tests/commands tests/pod

## The tests of the deployment: the template, `sam build`, `sam local invoke`, `cargo lambda`, `sam deploy` and the package. Those
## of `sam local invoke` need Docker, and are skipped without it: TESTS=tests/deployment/test_local_invoke.py runs them alone.
test-deployment: deployment-tools binary binaries valgrind
	PATH="$$(tests/deployment/tools):$$PATH" python -m pytest -rs $(TESTS)

## Starts a Docker engine, if none answers; as root on Debian it installs one.
docker-engine:
	@tests/deployment/docker-engine

# sam, cargo-lambda, zig, moto, pytest, ruff and hadolint: installed once per machine.
deployment-tools:
	@tests/deployment/tools >/dev/null

## The tests that need nothing but Rust.
test-quick:
	cargo test --workspace
	cargo test -p agent-scheduler-cli --features schema --test schema

## What a start and a warm event cost, beside a floor that only POSTs; some minutes.
## CLUSTER=real: events per second on a real control plane, beside a bare client.
bench: binary
	cargo build --release -p floor
	cargo build --profile lab -p bench
	@$(BENCH) $(if $(filter real,$(CLUSTER)),throughput, \
		cost --floor $(FLOOR) --starts $(STARTS)) \
		--function $(FUNCTION) --event $(EVENT) --events $(EVENTS)
	$(if $(filter real,$(CLUSTER)),,@$(BENCH) sweep --function $(FUNCTION) --event $(EVENT))

## The same in instructions, compared with tests/bench/instructions.json; UPDATE=1 keeps the new counts.
instructions: binary binaries valgrind
	cargo build --release -p floor
	@$(SHORT) instructions --function $(FUNCTION) --floor $(FLOOR) --event events/job-scheduled.json \
		--figures tests/bench/instructions.json --toolchain "$$(rustc -vV | awk '/^host:/ { host = $$2 } /^release:/ { print "rustc " $$2 " for " host }')" $(if $(UPDATE),--update)

## The targets of tests/fuzz with libFuzzer, a minute each: FUZZ_SECONDS=1800 for longer, TARGETS=event for one of them.
fuzz:
	@tests/fuzz/run $(FUZZ_SECONDS) $(TARGETS)

## Seeds of the simulation for a minute, on all cores: SECONDS=1800 for longer, FROM=… is the first seed. A seed that fails is printed
## with the command that repeats it.
simulate:
	@cargo run --quiet --package simulation -- --seconds $(SECONDS) --from $(FROM)

## The simulated day of docs/scale.md: puts its tables and plots there. JOBS=1000000 is a day with more jobs; some minutes.
scale:
	cargo build --workspace --profile lab --bin scale
	@$(CARGO_TARGET_DIR)/lab/scale --jobs $(JOBS) --page docs/scale.md

## 10,000 events on a real control plane, with requests that fail and functions that are killed: one Job for each in the end.
## CLUSTER=stand-in uses the lab's API server; LOAD_EVENTS=… sends more or fewer. Some minutes. CALM=true has nothing fail.
load: binary control-plane
	cargo build --profile lab -p bench
	@$(BENCH) load --cluster $(or $(CLUSTER),real) --events $(LOAD_EVENTS) $(if $(CALM),--calm) --function $(FUNCTION) --event $(EVENT)

## 100,000 warm events to one process: memory, descriptors and threads do not grow. Then with a trace id for each event, as in
## Lambda, each of which glibc keeps. Some minutes.
soak: binary
	cargo build --profile lab -p bench
	@$(BENCH) soak --events $(SOAK_EVENTS) --function $(FUNCTION) --event $(EVENT)
	@$(BENCH) soak --own-traces --events $(SOAK_EVENTS) --function $(FUNCTION) --event $(EVENT)

## 200 functions that start at once, before an SSM that answers 40 calls a second, or 10,000; and with a reserved concurrency of 40.
cold-starts: binary
	cargo build --profile lab -p bench
	@$(BENCH) cold-starts --function $(FUNCTION) --event $(EVENT)

## 1,000 jobs at once, with the agent token that all share and with a token for each agent, at Buildkite's rate limits; two minutes.
burst: binary
	cargo build --profile lab -p bench
	@$(BENCH) burst --function $(FUNCTION) --event $(EVENT)

# The function, optimised: cargo takes minutes to link it.
binary:
	@echo "building the function, optimised: some minutes after a change" >&2
	cargo build --release -p agent-scheduler --bin agent-scheduler

# The function and the lab, for tests.
binaries:
	cargo build --workspace --bins

valgrind:
	@command -v valgrind >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y valgrind; } \
		|| { echo "install valgrind: it counts the instructions" >&2; exit 1; }

## Links, words, the clock, the rules for dependencies (deny.toml), format, clippy, rustdoc, ruff and hadolint.
lint: deployment-tools
	tests/lint/links
	tests/lint/words
	tests/lint/clock
	tests/cargo-deny --locked --workspace check --hide-inclusion-graph bans licenses sources
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test control_plane --test node --test process -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	PATH="$$(tests/deployment/tools):$$PATH"; ruff check $(PYTHON) && ruff format --check $(PYTHON)
	PATH="$$(tests/deployment/tools):$$PATH"; hadolint pod-definitions/elastic-ci-stack/agent/Dockerfile
