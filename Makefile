# Every command of this project; README says what they are for.

EVENT ?= events/job-scheduled.json
export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: run test test-quick lint tls-stack

## One event through the real function, against stand-ins for AWS, Lambda and Kubernetes: EVENT=events/… picks another.
run:
	cargo build --workspace --bins
	@$(CARGO_TARGET_DIR)/debug/lab run --function $(CARGO_TARGET_DIR)/debug/agent-scheduler --event $(EVENT)

## Every test; installs what it needs.
test: test-quick

## The tests that need nothing but Rust.
test-quick:
	cargo test --workspace

## Format, clippy, rustdoc, one TLS stack.
lint: tls-stack
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# aws-lc-rs everywhere: a second TLS stack is megabytes of binary and milliseconds of every cold start.
tls-stack:
	@! cargo tree --workspace --prefix none --format '{p}' | sed 's/ (.*//' | sort -u \
		| grep -E '^(ring|native-tls|openssl) ' || { echo "a second TLS stack is linked; see cargo tree -i" >&2; exit 1; }
	@twice=$$(cargo tree --workspace --prefix none --format '{p}' | sed 's/ (.*//' | sort -u | cut -d' ' -f1 \
		| grep -xE 'rustls|hyper|tokio-rustls|hyper-rustls' | uniq -d); \
		[ -z "$$twice" ] || { echo "in two versions: $$twice; see cargo tree -d" >&2; exit 1; }
