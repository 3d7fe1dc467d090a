#!/usr/bin/env python3
"""The instance's web server: Python's http.server, which also takes uploads (PUT) and forgets them.

web.py ADDRESS PORT DIRECTORY
"""

import functools
import http.server
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                return
            left -= len(piece)
        self.send_response(204)
        self.end_headers()


def main():
    address, port, directory = sys.argv[1:]
    handler = functools.partial(Handler, directory=directory)
    with http.server.ThreadingHTTPServer((address, int(port)), handler) as server:
        print("serving", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
