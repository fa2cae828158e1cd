"""The peers: what each needs, how it is started, how its version is told, which requests it gets."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from processes import Failed, free_ports

HERE = os.path.dirname(os.path.abspath(__file__))


def output(*command, **more):
    """What a command says, on one line."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")
    # Some tell their version on stderr.
    said = done.stdout.strip() or done.stderr.strip()
    return said.splitlines()[0] if said else ""


def ask(url):
    """The JSON document at `url`."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def listens(port):
    """Whether somebody listens on the loopback's `port`."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def find(name, *directories):
    """The program `name`; packages put servers where not everybody's PATH looks."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join([*directories, "/usr/sbin", "/usr/local/sbin"]))


class Borough:
    """Three nodes, replication 3, 32 shards, one router: what `borough dev` starts."""

    loads = ("get", "put", "mix", "batchGet")
    requests = None

    def __init__(self, options, engine):
        self.options, self.engine = options, engine

    def missing(self):
        found = self.options.borough and os.path.isfile(self.options.borough)
        return [] if found else ["borough (cargo build --release -p borough, or --borough)"]

    def version(self):
        return f"{output(self.options.borough, '--version')}, engine {self.engine}, 3 nodes, 1 router"

    def start(self, servers):
        data = os.path.join(servers.directory, "data")
        command = [self.options.borough, "dev", "--nodes", "3", "--port", "0", "--data-dir", data]
        # Settings of whoever runs this must not change what is measured.
        env = {name: value for name, value in os.environ.items() if not name.startswith("BOROUGH_")}
        servers.start("borough", [*command, "--engine", self.engine], env=env)
        state = os.path.join(data, "dev.json")

        def whole():
            with open(state, encoding="utf-8") as file:
                url = json.load(file)["router"]
            shards = ask(f"{url}/admin/v1/cluster")["shards"]
            return url if shards and all(len(one["replicas"]) == 3 and one["state"] == "healthy" for one in shards) else None

        return [servers.wait("three replicas of every shard", whole, 120)]


class Etcd:
    """Three members that fsync, asked through their JSON gateways; connections are spread over them."""

    loads = ("get", "put", "mix")
    requests = os.path.join(HERE, "requests", "etcd.json")

    def __init__(self, _options):
        self.etcd = find("etcd")

    def missing(self):
        return [] if self.etcd else ["etcd (package etcd-server)"]

    def version(self):
        return f"{output(self.etcd, '--version')}, 3 members, JSON gateway"

    def start(self, servers):
        ports = free_ports(6)
        clients = [f"http://127.0.0.1:{port}" for port in ports[:3]]
        members = [f"http://127.0.0.1:{port}" for port in ports[3:]]
        cluster = ",".join(f"m{number}={url}" for number, url in enumerate(members))
        env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        for number, (client, member) in enumerate(zip(clients, members)):
            servers.start(f"etcd-{number}", [
                self.etcd, "--name", f"m{number}", "--data-dir", os.path.join(servers.directory, f"m{number}"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", member, "--initial-advertise-peer-urls", member,
                "--initial-cluster", cluster, "--initial-cluster-state", "new",
                "--logger", "zap", "--log-level", "error",
            ], env=env)
        for client in clients:
            servers.wait("etcd", lambda url=client: ask(f"{url}/health")["health"] == "true")
        return clients


class Classic:
    """nginx, FastAPI under uvicorn, Redis as a cache, one PostgreSQL that fsyncs."""

    loads = ("get", "put", "mix")
    requests = os.path.join(HERE, "requests", "classic.json")

    def __init__(self, options):
        self.options = options
        versions = "/usr/lib/postgresql"
        found = sorted(os.listdir(versions), key=lambda name: -int(name) if name.isdigit() else 0) if os.path.isdir(versions) else []
        self.binaries = [os.path.join(versions, name, "bin") for name in found]
        self.nginx, self.redis = find("nginx"), find("redis-server")
        self.postgres, self.initdb = find("postgres", *self.binaries), find("initdb", *self.binaries)
        self.python = self.interpreter()

    def interpreter(self):
        """The Python that has the application's packages: CLASSIC_VENV's, or this one."""
        venv = os.environ.get("CLASSIC_VENV")
        python = os.path.join(venv, "bin", "python") if venv else sys.executable
        modules = "import asyncpg, fastapi, redis.asyncio, uvicorn"
        try:
            done = subprocess.run([python, "-c", modules], check=False, capture_output=True)
        except OSError:
            return None
        return python if done.returncode == 0 else None

    def missing(self):
        needs = [
            (self.nginx, "nginx (package nginx)"),
            (self.redis, "redis-server (package redis-server)"),
            (self.postgres and self.initdb, "postgres and initdb (package postgresql)"),
            (self.python, "asyncpg, fastapi, redis, uvicorn (a venv with classic/requirements.txt; CLASSIC_VENV names it)"),
        ]
        return [text for found, text in needs if not found]

    def version(self):
        code = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in ('fastapi', 'uvicorn', 'redis', 'asyncpg')))"
        programs = [output(self.nginx, "-v"), output(self.redis, "--version").split(" sha=")[0], output(self.postgres, "--version")]
        return ", ".join([*programs, output(self.python, "--version"), output(self.python, "-c", code), f"{self.options.workers} workers"])

    def start(self, servers):
        port, application, redis, postgres = free_ports(4)
        self.start_postgres(servers, postgres)
        servers.start("redis", [self.redis, "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                      cwd=servers.directory)
        env = {
            **os.environ,
            "CLASSIC_POSTGRES": f"postgresql://postgres@127.0.0.1:{postgres}/postgres",
            "CLASSIC_REDIS": f"redis://127.0.0.1:{redis}/0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        servers.wait("redis", lambda: listens(redis))
        servers.start("application", [
            self.python, "-m", "uvicorn", "app:app", "--app-dir", os.path.join(HERE, "classic"), "--host", "127.0.0.1",
            "--port", str(application), "--workers", str(self.options.workers), "--no-access-log", "--log-level", "warning",
            "--timeout-keep-alive", "600",
        ], env=env)
        with open(os.path.join(HERE, "classic", "nginx.conf"), encoding="utf-8") as file:
            text = file.read()
        for name, value in (("DIR", servers.directory), ("PORT", port), ("APPLICATION", application)):
            text = text.replace(f"@{name}@", str(value))
        conf = os.path.join(servers.directory, "nginx.conf")
        with open(conf, "w", encoding="utf-8") as file:
            file.write(text)
        servers.start("nginx", [self.nginx, "-c", conf, "-e", os.path.join(servers.directory, "nginx.log")])
        url = f"http://127.0.0.1:{port}"
        servers.wait("the application", lambda: absent(f"{url}/users/nobody"))
        return [url]

    def start_postgres(self, servers, port):
        """It refuses to run as root, who runs it as `postgres`."""
        data = os.path.join(servers.directory, "postgres")
        os.mkdir(data, 0o700)
        more = {"cwd": data}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(data, account.pw_uid, account.pw_gid)
            more |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        output(self.initdb, "--pgdata", data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", **more)
        table = "CREATE TABLE users (id text PRIMARY KEY, document jsonb NOT NULL);\n"
        output(self.postgres, "--single", "-D", data, "postgres", input=table, **more)
        servers.start("postgres", [
            self.postgres, "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}",
            "-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200",
        ], stop_with=signal.SIGINT, **more)
        servers.wait("postgres", lambda: listens(port))


def absent(url):
    """Whether the service answers, and 404."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 404
    return False


PEERS = {
    "borough-sled": lambda options: Borough(options, "sled"),
    "borough-fjall": lambda options: Borough(options, "fjall"),
    "etcd": Etcd,
    "classic": Classic,
}
