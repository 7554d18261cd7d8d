# Sourced by tests/run and .ci/run: the one place that says where downloaded tools and build results stay.
tools_cache=${XDG_CACHE_HOME:-$HOME/.cache}/notifier-tests

# A continuous-integration run starts from a fresh clone: its build results stay beside the tools, so that the next
# clone is warm.
if [ "${CI:-}" = true ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR=$tools_cache/target
fi
