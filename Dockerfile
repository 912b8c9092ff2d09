# Two stages: build with the stable toolchain, run on a plain Debian.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --system --home-dir /var/lib/turnpike --create-home turnpike
COPY --from=build /src/target/release/turnpike /usr/local/bin/turnpike
USER turnpike
WORKDIR /var/lib/turnpike
EXPOSE 8402
# The admin address stays on loopback unless the configuration says otherwise.
ENTRYPOINT ["turnpike"]
CMD ["serve", "/etc/turnpike/turnpike.yaml"]
