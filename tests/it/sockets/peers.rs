//! Whom a UNIX socket remembers: the same processes, users and groups after a restore as before, each as its holder sees them.

use crate::cli::migrate;
use crate::zoo::tools::{adopt_orphans, reap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A parent and two children (one of them another user) that are connected in every way there is. Each writes down what its
/// sockets say of their peers, again whenever it gets SIGUSR1.
const FAMILY: &str = "
import os, signal, socket, struct, sys
os.closerange(3, 1024)
os.chdir(sys.argv[1])
abstract = '\\0migrate-peers-' + str(os.getpid())
pair = socket.socketpair()
dgram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
gone, end = socket.socketpair()
end.close()
up, down = socket.socketpair(), socket.socketpair()

def tell(name, sockets):
    def say(*_):
        seen = [struct.unpack('3i', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)) for s in sockets]
        with open('new-' + name, 'w') as out:
            out.write(repr(seen))
        os.rename('new-' + name, name)
    signal.signal(signal.SIGUSR1, say)
    say()
    while True:
        signal.pause()

def listens(where, name, uid, ready):
    os.setresgid(uid, uid, 0)
    os.setresuid(uid, uid, 0)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if uid else socket.SOCK_STREAM)
    listener.bind(where)
    listener.listen(5)
    ready.send(b'x')
    accepted, _ = listener.accept()
    tell(name, [listener, accepted, pair[1], dgram[1]])

children = []
for (where, name, uid, ready) in ((abstract, 'one', 0, up), (sys.argv[1] + '/path', 'two', 4711, down)):
    pid = os.fork()
    if pid == 0:
        listens(where, name, uid, ready[1])
    children.append(pid)
    ready[0].recv(1)
one = socket.socket(socket.AF_UNIX)
one.connect(abstract)
two = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
two.connect('path')
open('children', 'w').write(' '.join(map(str, children)))
tell('parent', [pair[0], dgram[0], gone, one, two])
";

struct Family {
    dir: tempfile::TempDir,
    parent: Child,
}

const NAMES: [&str; 3] = ["parent", "one", "two"];

impl Family {
    /// `None`, said, where it cannot be tried.
    fn start() -> Option<Self> {
        let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
        if !root || !python {
            crate::skip!("peers of sockets: needs root ({root}) and /usr/bin/python3 ({python})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(4711), Some(4711)).unwrap();
        let parent = Command::new("setsid")
            .args(["/usr/bin/python3", "-c", FAMILY])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { dir, parent })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What each says of its sockets, written anew.
    fn told(&self) -> Vec<String> {
        let until = Instant::now() + Duration::from_secs(20);
        let read = |name: &str| loop {
            match std::fs::read_to_string(self.path(name)) {
                Ok(text) => break text,
                Err(_) => assert!(Instant::now() < until, "{name} says nothing"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        NAMES.map(read).to_vec()
    }

    fn ask_again(&self) -> Vec<String> {
        NAMES.iter().for_each(|name| std::fs::remove_file(self.path(name)).unwrap());
        self.processes().for_each(|pid| nix::sys::signal::kill(pid, nix::sys::signal::SIGUSR1).unwrap());
        self.told()
    }

    /// Found by the directory that is an argument of theirs.
    fn processes(&self) -> impl Iterator<Item = nix::unistd::Pid> {
        let mark = self.dir.path().display().to_string();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(move |entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let ours = String::from_utf8_lossy(&line).split('\0').any(|word| word == mark);
            (ours && line.starts_with(b"/usr/bin/python3")).then(|| nix::unistd::Pid::from_raw(pid))
        })
    }

    fn run(&self, args: &[&str]) {
        let out = std::fs::File::create(self.path("out")).unwrap();
        let status = migrate(args).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        assert!(status.success(), "{args:?}: {}", std::fs::read_to_string(self.path("out")).unwrap());
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

fn same_after(restore: &[&str]) {
    adopt_orphans();
    let Some(mut family) = Family::start() else { return };
    let before = family.told();
    let parent = family.parent.id().to_string();
    let children = std::fs::read_to_string(family.path("children")).unwrap();
    let (one, two) = children.split_once(' ').unwrap();
    // As the test means it: who made the pair, who listens, who has connected.
    assert_eq!(
        before[0],
        format!("[({parent}, 0, 0), ({parent}, 0, 0), ({parent}, 0, 0), ({one}, 0, 0), ({two}, 4711, 4711)]")
    );
    let listener =
        |pid: &str, id: i32| format!("[({pid}, {id}, {id}), ({parent}, 0, 0), ({parent}, 0, 0), ({parent}, 0, 0)]");
    assert_eq!(before[1..], [listener(one, 0), listener(two, 4711)]);
    let image = family.path("image").display().to_string();
    family.run(&["dump", &parent, "-D", &image]);
    let _ = family.parent.wait();
    // Ours by now: their ids have to be free.
    reap(&[one, two].iter().map(|pid| pid.trim().parse().unwrap()).collect());
    family.run(&[&["restore", "-D", &image, "--detach"], restore].concat());
    assert_eq!(family.ask_again(), before);
}

#[test]
fn sockets_remember_the_processes_they_did() {
    same_after(&["--pids", "same"]);
}

#[test]
fn sockets_remember_them_in_a_pid_namespace_of_their_own() {
    same_after(&["--pids", "new"]);
}
