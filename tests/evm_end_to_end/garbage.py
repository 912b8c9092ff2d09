"""A cosigner's machine in other hands: its certificate and key, and garbage for every call.

    garbage.py ADDRESS:PORT CERTIFICATE KEY AUTHORITY KIND

KIND is `nonsense` (no HTTP), `cut` (a TLS record that breaks off) or `random` (an answer in good form, of random bytes).
Says `ready` when it listens, and `answered` after each call. Ended by its process id.
"""

import os
import socket
import ssl
import sys
import threading

CALL_BYTES_MAX = 1 << 20


def call(stream):
    """Reads one call, as HTTP/1.1 has it; False at the connection's end."""
    text = b""
    while b"\r\n\r\n" not in text and len(text) < CALL_BYTES_MAX:
        more = stream.recv(65536)
        if not more:
            return False
        text += more
    head, _, body = text.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    while missing > 0:
        missing -= len(stream.recv(missing)) or missing
    return True


def nonsense(stream):
    stream.sendall(b"\0\xff 99 HTTP" + os.urandom(300) + b"\r\n\r\n")
    stream.close()


def cut(stream):
    # Beneath TLS: the head of a record of 16 KiB, and a hundred bytes of it.
    raw = socket.socket(fileno=stream.detach())
    raw.sendall(b"\x17\x03\x03\x40\x00" + os.urandom(100))
    raw.close()


def random(stream):
    body = os.urandom(2000)
    stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def serve(tcp, context, answer):
    try:
        stream = context.wrap_socket(tcp, server_side=True)
        while stream.fileno() >= 0 and call(stream):
            answer(stream)
            print("answered", flush=True)
    except OSError:
        tcp.close()


def main():
    address, certificate, key, authority, kind = sys.argv[1:]
    answer = {"nonsense": nonsense, "cut": cut, "random": random}[kind]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)))
    print("ready", flush=True)
    while True:
        tcp, _ = listener.accept()
        threading.Thread(target=serve, args=(tcp, context, answer), daemon=True).start()


main()
