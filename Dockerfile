# Two stages: build with the image's own stable toolchain, run on a plain Debian.
#
#   docker build -t turnpike .
#   docker run -v ./turnpike:/etc/turnpike:ro -v turnpike-ledger:/var/lib/turnpike -p 8402:8402 --stop-timeout 45 turnpike
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The image's toolchain is installed under its number: without this, rust-toolchain.toml would have "stable" downloaded.
RUN RUSTUP_TOOLCHAIN="$RUST_VERSION" cargo build --release --locked --bin turnpike

FROM debian:bookworm-slim
# A number, so that an orchestrator can see that it is not root, and files can be given to it.
RUN useradd --uid 8402 --user-group --no-log-init --home-dir /var/lib/turnpike --create-home --shell /usr/sbin/nologin turnpike
COPY --from=build /src/target/release/turnpike /usr/local/bin/turnpike
USER 8402:8402
# The ledger is written to the working directory unless the configuration says otherwise. It is money: keep it in a volume.
WORKDIR /var/lib/turnpike
VOLUME /var/lib/turnpike
EXPOSE 8402
# The admin address stays on loopback, inside of the container, unless the configuration says otherwise.
# SIGTERM drains for up to timeouts.drain: give the container longer than that to stop.
ENTRYPOINT ["turnpike"]
CMD ["serve", "/etc/turnpike/turnpike.yaml"]
