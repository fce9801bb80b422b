# Every command of this project; README says what they are for.

EVENT ?= events/job-scheduled.json
export CARGO_TARGET_DIR ?= $(CURDIR)/target

STARTS ?= 40
EVENTS ?= 1000
LOAD_EVENTS ?= 10000
SOAK_EVENTS ?= 100000
TESTS ?= tests/deployment
FUZZ_SECONDS ?= 60
TARGETS ?= event query_rules pod_definition certificate_authority api_server
# Every script there; the Dockerfile is no shell.
HOOKS = $(filter-out %/Dockerfile %/hooks,$(wildcard pod-definitions/elastic-ci-stack/agent/* pod-definitions/elastic-ci-stack/agent/hooks/*))
FUNCTION = $(CARGO_TARGET_DIR)/release/agent-scheduler
FLOOR = $(CARGO_TARGET_DIR)/release/floor
BENCH = $(CARGO_TARGET_DIR)/lab/bench
# The long runs, with what a test has built anyway.
SHORT = $(CARGO_TARGET_DIR)/debug/bench
SHORT_EVENT = --function $(CARGO_TARGET_DIR)/debug/agent-scheduler --event events/job-scheduled.json

.PHONY: run test test-quick test-hooks test-deployment deployment-tools docker-engine control-plane faketime bench fuzz instructions load soak cold-starts scale release lint valgrind

## One event through the real function, against stand-ins for AWS, Lambda and Kubernetes: EVENT=events/… picks another.
## CLUSTER=real takes a real control plane in place of the stand-in for Kubernetes; CONTEXT=… a cluster of your kubeconfig,
## where TOKEN=… is the Buildkite agent token of the pod, and NAMESPACE=… may be another one than `buildkite`.
run: export BUILDKITE_AGENT_TOKEN := $(TOKEN)
run:
	cargo build --workspace --bins
	@$(CARGO_TARGET_DIR)/debug/lab run --function $(CARGO_TARGET_DIR)/debug/agent-scheduler --event $(EVENT) \
		$(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(CONTEXT),--context $(CONTEXT)) \
		$(if $(NAMESPACE),--env KUBERNETES_NAMESPACE=$(NAMESPACE))

## Every test; installs what it needs.
test: test-quick instructions control-plane faketime
	cargo test --workspace --test control_plane --test process
	cargo build --workspace --bins
	@$(SHORT) load --cluster real --events 300 $(SHORT_EVENT)
	@$(SHORT) soak --events 3000 $(SHORT_EVENT)
	@$(SHORT) cold-starts --starts 40 --calls 10 --reserved 10 $(SHORT_EVENT)
	$(MAKE) test-hooks
	$(MAKE) test-deployment

# The programs of a Kubernetes control plane: built once per machine.
control-plane:
	@tests/control-plane/build >/dev/null

faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y faketime; } \
		|| { echo "install faketime: it puts a function's clock forward" >&2; exit 1; }

## The hooks, the start and the downloads of pod-definitions/elastic-ci-stack/agent, with bats and shellcheck; jq and git, too.
test-hooks:
	@( for tool in bats shellcheck jq git; do command -v $$tool || exit 1; done ) >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y bats shellcheck jq git; } \
		|| { echo "install bats (1.5 or newer), shellcheck, jq and git" >&2; exit 1; }
	shellcheck --external-sources $(HOOKS) tests/elastic-ci-stack/*
	bats tests/elastic-ci-stack

## The tests of template.yml, of `sam build`, `sam local invoke`, `cargo lambda` and `sam deploy`. Those of `sam local invoke`
## need Docker, and are skipped without it: TESTS=tests/deployment/test_local_invoke.py runs them alone.
test-deployment: deployment-tools release valgrind
	cargo build --workspace --bins
	PATH="$$(tests/deployment/tools):$$PATH" python -m pytest -rs $(TESTS)

## Docker's engine, installed and started if there is none (as root, on Debian).
docker-engine:
	@tests/deployment/docker-engine

# sam, cargo-lambda, zig, moto, pytest, ruff and hadolint: installed once per machine.
deployment-tools:
	@tests/deployment/tools >/dev/null

## The tests that need nothing but Rust.
test-quick:
	cargo test --workspace

## What a start and a warm event cost, beside a floor that does nothing but POST; some minutes.
## CLUSTER=real: events per second on a real control plane, beside a bare client.
bench: release
	cargo build --release -p floor
	cargo build --profile lab -p bench
	@$(BENCH) $(if $(filter real,$(CLUSTER)),throughput, \
		cost --floor $(FLOOR) --starts $(STARTS)) \
		--function $(FUNCTION) --event $(EVENT) --events $(EVENTS)

## The same in instructions, compared with tests/bench/instructions.json; UPDATE=1 keeps the new counts.
instructions: release valgrind
	cargo build --release -p floor
	cargo build --workspace --bins
	@$(SHORT) instructions --function $(FUNCTION) --floor $(FLOOR) --event events/job-scheduled.json \
		--figures tests/bench/instructions.json --toolchain "$$(rustc -vV | awk '/^host:/ { host = $$2 } /^release:/ { print "rustc " $$2 " for " host }')" $(if $(UPDATE),--update)

## The targets of tests/fuzz with libFuzzer, a minute each: FUZZ_SECONDS=1800 for longer, TARGETS=event for one of them.
fuzz:
	@tests/fuzz/run $(FUZZ_SECONDS) $(TARGETS)

## The simulated day of a million jobs: prints its tables, and writes them and the plots into docs/scale.md and docs/scale.
## OPTIONS="--jobs-per-day 100000 --ssm-rate 10000" is another day; `cargo run --release -p scale -- --help` tells all.
scale:
	cargo run --release -p scale -- --page docs/scale.md --out docs/scale $(OPTIONS)

## A burst of 10,000 events on a real control plane, where requests fail and functions are killed: one Job for each in the end.
## CLUSTER=stand-in takes the lab's API server; LOAD_EVENTS=… sends more or fewer. Some minutes.
load: release control-plane
	cargo build --profile lab -p bench
	@$(BENCH) load --cluster $(or $(CLUSTER),real) --events $(LOAD_EVENTS) --function $(FUNCTION) --event $(EVENT)

## 100,000 warm events to one process, whose memory, descriptors and threads stay as they were; then with a trace id for each
## event, as Lambda has them, of which glibc keeps each. Some minutes.
soak: release
	cargo build --profile lab -p bench
	@$(BENCH) soak --events $(SOAK_EVENTS) --function $(FUNCTION) --event $(EVENT)
	@$(BENCH) soak --own-traces --events $(SOAK_EVENTS) --function $(FUNCTION) --event $(EVENT)

## 200 functions that start at once, before an SSM that answers 40 calls a second, or 10,000; and with a reserved concurrency of 40.
cold-starts: release
	cargo build --profile lab -p bench
	@$(BENCH) cold-starts --function $(FUNCTION) --event $(EVENT)

release:
	cargo build --release -p agent-scheduler --bin agent-scheduler

valgrind:
	@command -v valgrind >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y valgrind; } \
		|| { echo "install valgrind: it counts the instructions" >&2; exit 1; }

## Format, clippy, rustdoc, ruff, hadolint, and what the dependencies may be (deny.toml).
lint: deployment-tools
	tests/cargo-deny --locked --workspace check --hide-inclusion-graph bans licenses sources
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test control_plane --test process -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	PATH="$$(tests/deployment/tools):$$PATH"; ruff check tests/deployment && ruff format --check tests/deployment
	PATH="$$(tests/deployment/tools):$$PATH"; hadolint pod-definitions/elastic-ci-stack/agent/Dockerfile
