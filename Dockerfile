# The program alone: no shell, no package manager, not root, nothing written to the root file system.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t notifier:0.1.0 .
#
# Give the base images by digest where builds have to be repeatable. The network is used by two steps only, and both
# follow lock files; what compiles runs without it.

ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS toolchain
# Writes the list of crates into the program, where scanners and SBOM generators find it.
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /build
# The final image has no zlib.
ENV LIBZ_SYS_STATIC=1

# Every dependency, compiled once: this layer is made anew only when a manifest or the lock file changes.
FROM toolchain AS dependencies
COPY Cargo.toml Cargo.lock ./
COPY loadtest/Cargo.toml loadtest/
RUN mkdir -p src loadtest/src \
 && echo 'fn main() {}' | tee build.rs src/main.rs loadtest/src/main.rs >src/lib.rs \
 && cargo fetch --locked
RUN --network=none cargo auditable build --frozen --profile dist --package notifier

FROM dependencies AS program
COPY build.rs ./
COPY proto proto
COPY migrations migrations
COPY src src
# Files of the build context may be older than the placeholders that were compiled above.
RUN --network=none touch build.rs src/lib.rs src/main.rs \
 && cargo auditable build --frozen --profile dist --package notifier

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="notifier" \
      org.opencontainers.image.description="Kafka events to every open session of a user, in order and without loss" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=program /build/target/dist/notifier /usr/bin/notifier
COPY LICENSE /usr/share/doc/notifier/LICENSE
# By number, so that Kubernetes sees that it is not root.
USER 65532:65532
# Clients, gRPC, admin, other nodes.
EXPOSE 8000 8001 8002 8003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/usr/bin/notifier", "health"]
ENTRYPOINT ["/usr/bin/notifier"]
# The configuration comes from the environment, NOTIFIER__SECTION__KEY, or from the file that NOTIFIER_CONFIG names.
CMD ["serve"]
