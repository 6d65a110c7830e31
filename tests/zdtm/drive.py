"""Runs tests of ZDTM one after the other, each in one or several ways, and says what became of them.

usage: drive.py SUITE BINARIES WORK [--how WAY] [TEST...]

A test is a program that sets up some state, writes its process id to a file, waits for SIGTERM, then looks whether the state is
what it was and writes PASS or what is wrong. Its `.desc` says what it needs. What is left out is listed with the reason."""

import argparse
import collections
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time

WAYS = ("restore", "pre-dump", "chain", "move", "post-copy")

# What the front does not do by purpose, or not yet, each with the reason: neither passed nor failed.
LEFT_OUT = {
    "aio00": "asynchronous I/O contexts are refused (M0207)",
    "aio01": "asynchronous I/O contexts are refused (M0207)",
    "apparmor": "there is no AppArmor here",
    "cgroup_ignore": "--manage-cgroups comes with the whole front",
    "console": "a console of the host is no file (M0308)",
    "deleted_dev": "a device node that was removed is refused (M0505)",
    "fanotify00": "fanotify groups are refused (M0305)",
    "file_locks00_fail": "it wants a dump without --file-locks to fail: ours saves locks",
    "ghost_holes_large01": "it wants a large deleted file to be refused: ours saves it",
    "ghost_multi_hole00": "--ghost-limit comes with the whole front",
    "ghost_multi_hole01": "--ghost-limit comes with the whole front",
    "inotify_irmap": "--force-irmap comes with the whole front",
    "loginuid": "the audit login is that of whoever restores",
    "packet_sock": "packet sockets are refused (M0402)",
    "packet_sock_mmap": "packet sockets are refused (M0402)",
    "packet_sock_spkt": "packet sockets are refused (M0402)",
    "pid_file": "a file of /proc of a process outside the tree is refused (M0321)",
    "sigtrap": "it wants a dump to fail that ours can do",
    "sk-freebind-false": "an address that is on no host any more is refused (M0411)",
    "sk-unix-listen02": "it wants a dump to fail that ours can do",
    "sk-unix-listen03": "it wants a dump to fail that ours can do",
    "sk-unix-listen04": "it wants a dump to fail that ours can do",
    "sock_ip_opts00": "raw sockets are refused (M0405)",
    "sock_ip_opts01": "raw sockets are refused (M0405)",
    "socket-dump-tcp-close": "connections that are closed are reset, not ended",
    "socket-tcp-close0": "connections that are closed are reset, not ended",
    "socket-raw": "raw sockets are refused (M0405)",
    "socket-tcp-nft-nfconntrack": "--network-lock comes with the whole front",
    "socket-tcp-skip-in-flight": "--skip-in-flight comes with the whole front",
    "inotify00": "a watch of a file that was removed is refused (M0319)",
    "unhashed_proc": "a working directory in /proc of a process that has ended is refused (M0504)",
    "vt": "a console of the host is no file (M0308)",
}


class LeftOut(Exception):
    """It cannot be run, or need not be."""


class Failed(Exception):
    """What went wrong."""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def tree_of(pid):
    found = [pid]
    for member in found:
        try:
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children") as file:
                    found += [int(child) for child in file.read().split()]
        except OSError:
            pass
    return found


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(what)
        reap()
        time.sleep(0.01)
    # Who has just ended keeps its number until then.
    reap()


class Test:
    """One test, run in one way."""

    def __init__(self, suite, binaries, work, name, how):
        self.directory, self.name, self.how = suite, name, how
        self.binaries, self.work = binaries, work
        self.images = os.path.join("/dev/shm", f"zdtm-{os.getpid()}", name)
        self.log = os.path.join(work, "logs", how, name)
        os.makedirs(os.path.dirname(self.log), exist_ok=True)
        open(self.log, "w").close()
        try:
            with open(self.path(".desc")) as file:
                # Some of these make choices of their own.
                self.desc = eval(file.read(), {"os": os})
        except FileNotFoundError:
            self.desc = {}
        self.flags = self.desc.get("flags", "").split()
        self.pid = 0

    def path(self, suffix):
        return os.path.join(self.directory, self.name + suffix)

    def options(self, *kinds):
        return " ".join(self.desc.get(kind, "") for kind in ("opts", *kinds)).split()

    def run(self, args, seconds=90, env=None):
        """Runs a command, its output to the log; its exit code."""
        with open(self.log, "a") as log:
            print("$", *args, file=log, flush=True)
            try:
                done = subprocess.run(args, cwd=self.directory, env=env, timeout=seconds, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except subprocess.TimeoutExpired:
                raise Failed(f"{args[0]} {args[1]} does not end") from None
        return done.returncode

    def make(self, what, env=None):
        return self.run(["make", "--no-print-directory", self.name + what], env=env)

    def hook(self, stage):
        if os.access(self.path(".hook"), os.X_OK):
            self.run([self.path(".hook"), stage])

    def check(self):
        if "h" not in self.desc.get("flavor", "h ns uns").split():
            raise LeftOut("it is for namespaces of its own")
        for flag, reason in (("noauto", "the suite does not run it by itself"), ("pre-dump-notify", "it talks to its driver")):
            if flag in self.flags:
                raise LeftOut(reason)
        if "x86" not in self.desc.get("arch", "x86"):
            raise LeftOut("it is for another processor")
        if not os.path.exists(self.path("")):
            raise LeftOut("it was not built here")
        if self.name in LEFT_OUT:
            raise LeftOut(LEFT_OUT[self.name])
        if "crfail" in self.flags and self.how != "restore":
            raise LeftOut("it is to be refused, which the first way shows")

    def start(self):
        self.make(".cleanout")
        self.hook("--clean")
        env = dict(os.environ, TMPDIR="/tmp", ZDTM_THREAD_BOMB="5")
        if "suid" not in self.flags:
            env.update(ZDTM_UID="18943", ZDTM_GID="58467", ZDTM_GROUPS="27495 48244")
        try:
            started = self.make(".pid", env=env) == 0
        except Failed:
            started = False
        if not started:
            raise LeftOut("it does not start here")
        self.read_pid()
        self.hook("--post-start")
        time.sleep(0.05)

    def read_pid(self):
        with open(self.path(".pid")) as file:
            self.pid = int(file.read())

    def criu(self, verb, images, *more):
        log = ["--log-file", verb + ".log", "--verbosity=4", "--no-default-config"]
        return self.run([f"{self.binaries}/criu", verb, "--images-dir", images, *log, *more])

    def directory_for(self, *parts):
        made = os.path.join(self.images, *map(str, parts))
        os.makedirs(made, exist_ok=True)
        return made

    def save(self, turn, rounds):
        parent = []
        for n in range(rounds):
            images = self.directory_for(turn, n)
            tree = ["--tree", str(self.pid), "--track-mem", *parent, *self.options("dopts")]
            if self.criu("pre-dump", images, *tree) != 0:
                raise Failed("pre-dump")
            parent = ["--prev-images-dir", f"../{n}", "--track-mem"]
            time.sleep(0.05)
        images, before = self.directory_for(turn, rounds), tree_of(self.pid)
        saved = self.criu("dump", images, "--tree", str(self.pid), *parent, *self.options("dopts")) == 0
        if "crfail" in self.flags:
            if saved or not is_alive(self.pid):
                raise Failed("it was to be refused, and to run on")
            return None
        if not saved:
            raise Failed("dump" if is_alive(self.pid) else "dump, and it is gone")
        wait_until(lambda: not any(map(is_alive, before)), 3, "it lives on after its dump")
        os.unlink(self.path(".pid"))
        return images

    def saved_and_restored(self, turns, rounds):
        for turn in range(turns):
            self.hook("--pre-dump")
            images = self.save(turn, rounds)
            if images is None:
                return False
            self.hook("--pre-restore")
            if self.criu("restore", images, "--restore-detached", "--pidfile", self.path(".pid"), *self.options("ropts")) != 0:
                raise Failed("restore")
            self.hook("--post-restore")
            self.read_pid()
            time.sleep(0.05)
        return True

    def moved(self, mode):
        if self.name.startswith("file_lease"):
            raise LeftOut("a lease to write is refused within one kernel (M0313)")
        if "--manage-cgroups" in self.desc.get("opts", ""):
            raise LeftOut("--manage-cgroups is an option of restores")
        if any("tcp-close" in option for option in self.options("dopts", "ropts")):
            raise LeftOut("a move keeps connections")
        self.hook("--pre-dump")
        before = tree_of(self.pid)
        socket = os.path.join(self.work, "agent")
        command = [f"{self.binaries}/migrate", "move", str(self.pid), "unix:" + socket, "--json", "--mode", mode]
        if self.run(command, env=dict(os.environ, MIGRATE_PLACES=os.path.join(self.work, "a"))) != 0:
            raise Failed("move" if is_alive(self.pid) else "move, and it is gone")
        wait_until(lambda: not any(map(is_alive, before)), 3, "it lives on after its move")
        with open(self.log) as log:
            self.pid = json.loads(log.read().strip().rsplit("\n", 1)[1])["pid"]
        self.hook("--post-restore")
        time.sleep(0.05)
        return True

    def verdict(self):
        os.kill(self.pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(self.pid), 60, "it does not end")
        time.sleep(0.02)
        said = ""
        for suffix in (".out", ".out.inprogress"):
            if os.path.exists(self.path(suffix)):
                with open(self.path(suffix)) as file:
                    said = file.read()
                break
        with open(self.log, "a") as log:
            log.write(said)
        if "PASS" not in said.split():
            lines = [line for line in said.splitlines() if "FAIL" in line or "ERR" in line]
            raise Failed(lines[0].strip() if lines else "it says nothing")

    def do(self):
        self.check()
        try:
            self.start()
            ways = {
                "restore": lambda: self.saved_and_restored(1, 0),
                "pre-dump": lambda: self.saved_and_restored(1, 2),
                "chain": lambda: self.saved_and_restored(3, 0),
                "move": lambda: self.moved("pre-copy"),
                "post-copy": lambda: self.moved("post-copy"),
            }
            if ways[self.how]():
                self.verdict()
        finally:
            for pid in reversed(tree_of(self.pid)) if self.pid else ():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(0.01)
            reap()
            self.hook("--clean")
            shutil.rmtree(self.images, ignore_errors=True)
            self.make(".cleanout")


def start_agent(binaries, work):
    agent, socket = f"{binaries}/migrate", os.path.join(work, "agent")
    if os.path.exists(socket):
        os.unlink(socket)
    env = dict(os.environ, MIGRATE_PLACES=os.path.join(work, "b"))
    null = subprocess.DEVNULL
    process = subprocess.Popen([agent, "agent", "--listen", "unix:" + socket], env=env, stdin=null, stdout=null, stderr=null, start_new_session=True)
    wait_until(lambda: os.path.exists(socket), 10, "the agent does not listen")
    return process


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("suite"), parser.add_argument("binaries"), parser.add_argument("work")
    parser.add_argument("--how", choices=WAYS, action="append")
    parser.add_argument("tests", nargs="*")
    args = parser.parse_intermixed_args()
    # PR_SET_CHILD_SUBREAPER: what a test or a restore leaves behind is ours to wait for.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    failed = 0
    agent = start_agent(args.binaries, args.work)
    try:
        for how in args.how or WAYS:
            counts, reasons = collections.Counter(), collections.Counter()
            for kind in ("static", "transition"):
                suite = os.path.realpath(os.path.join(args.suite, kind))
                names = sorted(name[:-2] for name in os.listdir(suite) if name.endswith(".c"))
                for name in names:
                    if args.tests and name not in args.tests:
                        continue
                    try:
                        Test(suite, args.binaries, args.work, name, how).do()
                        counts["passed"] += 1
                    except LeftOut as reason:
                        counts["left out"] += 1
                        reasons[str(reason)] += 1
                    except Failed as reason:
                        counts["failed"] += 1
                        print(f"{how} {kind}/{name}: {reason}", flush=True)
            print(f"{how}: " + ", ".join(f"{n} {what}" for what, n in counts.items()), flush=True)
            failed += counts["failed"]
            for reason, n in reasons.most_common():
                print(f"  {n} left out: {reason}")
    finally:
        agent.terminate()
        agent.wait()
    sys.exit(1 if failed else 0)


main()
