"""A Hub and an S3 on this machine: enough of their HTTP APIs to be downloaded from, and every fault on demand."""
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
import xml.sax.saxutils


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Faults:
    """What goes wrong with the bytes of files, whoever serves them."""

    def __init__(self):
        self.ranges = True          # False: Range is ignored
        self.cut_after = []         # bytes after which the connection of each next answer is cut
        self.answers = []           # (status, headers) of the next answers instead of theirs
        self.corrupt = False        # one byte of every file is another
        self.longer = 0             # bytes more than there should be
        self.wrong_range = False    # other bytes than were asked for
        self.rate = None            # bytes a second of each connection
        self.silent = False         # after the first byte nothing more comes

    def next_answer(self):
        return self.answers.pop(0) if self.answers else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.handle_one(False)

    def do_GET(self):
        self.handle_one(True)

    def handle_one(self, body):
        owner = self.server.owner
        with owner.lock:
            owner.requests.append((self.command, self.path, dict(self.headers)))
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
        try:
            owner.answer(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner.lock:
                owner.at_once -= 1

    def say(self, status, headers=(), data=b"", body=True):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    def send_file(self, data, headers, faults, body=True):
        fault = faults.next_answer() if body else None
        if fault:
            return self.say(fault[0], fault[1])
        if faults.corrupt and data:
            data = data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]
        data += b"x" * faults.longer
        whole, status, extra = len(data), 200, {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and faults.ranges:
            first, last = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
            if first >= whole:
                return self.say(416, {"Content-Range": f"bytes */{whole}"})
            if faults.wrong_range:
                first = max(first - 1, 0)
            data, status = data[first:last + 1], 206
            extra = {"Content-Range": f"bytes {first}-{last}/{whole}"}
        self.send_response(status)
        for name, value in {**headers, **extra}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        cut = faults.cut_after.pop(0) if faults.cut_after else None
        step = 1 if faults.silent else max(int(faults.rate / 50), 1) if faults.rate else 1 << 20
        for begin in range(0, len(data), step):
            part = data[begin:begin + step]
            if cut is not None and begin + len(part) > cut:
                self.wfile.write(part[:max(cut - begin, 0)])
                self.close_connection = True
                return
            self.wfile.write(part)
            if faults.silent:
                self.server.owner.closing.wait(60)
                return
            if faults.rate:
                time.sleep(0.02)


class Server:
    def __init__(self, tls=None):
        """tls: an ssl.SSLContext, to be asked by https."""
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.at_once = self.most_at_once = 0
        self.requests = []
        self.faults = Faults()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.owner = self
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()

    def asked(self, method, pattern):
        with self.lock:
            return [r for r in self.requests if r[0] == method and re.search(pattern, r[1])]


class Cdn(Server):
    """Where the Hub sends those who ask for large files: addresses with a signature, good for a while."""

    def __init__(self, tls=None):
        super().__init__(tls)
        self.files = {}
        self.generation = 0

    def address(self, sha256):
        return f"{self.url}/{sha256}?signature={self.generation}"

    def answer(self, request, body):
        url = urllib.parse.urlsplit(request.path)
        if url.query != f"signature={self.generation}":
            return request.say(403, {}, b"the address has run out", body)
        request.send_file(self.files[url.path[1:]], {"ETag": '"of-the-cdn"'}, self.faults, body)


class Hub(Server):
    """Repositories with commits; files from `lfs_from` bytes on are LFS files and come from the CDN."""

    def __init__(self, cdn=None, lfs_from=1 << 16, tls=None):
        super().__init__(tls)
        self.cdn, self.lfs_from = cdn, lfs_from
        self.repos = {}    # name -> {revision: commit}
        self.commits = {}  # (name, commit) -> {path: bytes}
        self.token = None  # needed for everything
        self.gated = set()
        self.page = 1000   # entries of one page of a listing
        self.api_answers = []
        self.listed_as = {}  # path -> what the listing says instead of the truth: {"size": …} or {"oid": …}
        self.extra = []      # further entries of every listing
        self.linked_etag = None

    def add(self, repo, files, revision="main"):
        content = {path: data for path, data in files.items()}
        commit = hashlib.sha1(repr(sorted((p, git_sha1(d)) for p, d in content.items())).encode()).hexdigest()
        self.repos.setdefault(repo, {})[revision] = commit
        self.commits[repo, commit] = content
        return commit

    def answer(self, request, body):
        path = urllib.parse.urlsplit(request.path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path)
        if self.api_answers and api:
            status, headers = self.api_answers.pop(0)
            return request.say(status, headers)
        repo = (api or file)[1] if api or file else None
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return request.say(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}", body)
        if repo not in self.repos:
            return request.say(404, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        if repo in self.gated:
            return request.say(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}", body)
        revision = urllib.parse.unquote((api[3] if api else file[2]) or "main")
        commit = self.repos[repo].get(revision, revision)
        if (repo, commit) not in self.commits:
            return request.say(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", body)
        files = self.commits[repo, commit]
        if api and api[2] != "tree":
            siblings = [{"rfilename": name} for name in files]
            return request.say(200, {}, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode(), body)
        if api:
            return self.tree(request, path, files, body)
        name = urllib.parse.unquote(file[3])
        if name not in files:
            return request.say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"", body)
        self.resolve(request, files[name], commit, body)

    def tree(self, request, url, files, body):
        entries = []
        for name, data in sorted(files.items()):
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
            if len(data) >= self.lfs_from:
                entry["oid"] = "0" * 40
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            for key, value in self.listed_as.get(name, {}).items():
                entry[key] = value
                if "lfs" in entry:
                    entry["lfs"][key] = value
            entries.append(entry)
        entries += [{"type": "directory", "path": "sub", "size": 0, "oid": "0" * 40}] + self.extra
        at = int(urllib.parse.parse_qs(url.query).get("cursor", ["0"])[0])
        headers = {}
        if at + self.page < len(entries):
            headers["Link"] = f'<{self.url}{url.path}?recursive=true&cursor={at + self.page}>; rel="next"'
        request.say(200, headers, json.dumps(entries[at:at + self.page]).encode(), body)

    def resolve(self, request, data, commit, body):
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(data) < self.lfs_from:
            return request.send_file(data, {**headers, "ETag": f'"{git_sha1(data)}"'}, self.faults, body)
        sha256 = hashlib.sha256(data).hexdigest()
        headers.update({"X-Linked-Etag": f'"{self.linked_etag or sha256}"', "X-Linked-Size": str(len(data))})
        if not self.cdn:
            return request.send_file(data, {**headers, "ETag": f'"{sha256}"'}, self.faults, body)
        self.cdn.files[sha256] = data
        request.say(302, {**headers, "Location": self.cdn.address(sha256)}, b"", body)


class S3(Server):
    """Buckets by path. `secret`: None lets anybody in."""

    def __init__(self, checksums=False, part=None):
        super().__init__()
        self.buckets = {}
        self.denied = set()
        self.page = 1000
        self.checksums, self.part = checksums, part

    def etag(self, data):
        if not self.part:
            return hashlib.md5(data).hexdigest()
        parts = [data[i:i + self.part] for i in range(0, len(data), self.part)]
        return hashlib.md5(b"".join(hashlib.md5(p).digest() for p in parts)).hexdigest() + f"-{len(parts)}"

    def error(self, request, status, code, body):
        request.say(status, {"Content-Type": "application/xml"},
                    f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode(), body)

    def answer(self, request, body):
        url = urllib.parse.urlsplit(request.path)
        bucket, _, key = urllib.parse.unquote(url.path[1:]).partition("/")
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        if bucket in self.denied:
            return self.error(request, 403, "AccessDenied", body)
        if bucket not in self.buckets:
            return self.error(request, 404, "NoSuchBucket", body)
        objects = self.buckets[bucket]
        if not key:
            return self.list(request, objects, query, body)
        if key not in objects:
            return self.error(request, 404, "NoSuchKey", body)
        data = objects[key]
        etag = f'"{self.etag(data)}"'
        if request.headers.get("If-Match", etag) != etag:
            return self.error(request, 412, "PreconditionFailed", body)
        headers = {"ETag": etag}
        if self.checksums and request.headers.get("x-amz-checksum-mode") == "ENABLED":
            import base64
            headers["x-amz-checksum-sha256"] = base64.b64encode(hashlib.sha256(data).digest()).decode()
        if query.get("partNumber") == "1" and self.part:
            return request.say(206, {**headers, "x-amz-mp-parts-count": "2"}, data[:self.part], False)
        if not body:
            return request.say(200, headers, data, False)
        request.send_file(data, headers, self.faults, body)

    def list(self, request, objects, query, body):
        keys = sorted(k for k in objects if k.startswith(query.get("prefix", "")))
        at = int(query.get("continuation-token", "0+/=")[:-3])
        entries = "".join(
            f"<Contents><Key>{xml.sax.saxutils.escape(k)}</Key><ETag>&quot;{self.etag(objects[k])}&quot;</ETag>"
            f"<Size>{len(objects[k])}</Size></Contents>" for k in keys[at:at + self.page])
        more = at + self.page < len(keys)
        tail = f"<NextContinuationToken>{at + self.page}+/=</NextContinuationToken>" if more else ""
        request.say(200, {"Content-Type": "application/xml"},
                    (f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                     f"<IsTruncated>{str(more).lower()}</IsTruncated>{entries}{tail}</ListBucketResult>").encode(), body)
