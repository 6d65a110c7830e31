//! Every code of the catalogue: provoked with a real target, or listed with the reason why not.
//!
//! A refused target runs on, and every blocker names its object, says why, and what to do.

mod table;

use crate::cli::{events, migrate};
use crate::networks::Killed;
use migrate_engine::blocker::entries;
use migrate_engine::image::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use table::{NOT_HERE, SAVED};

/// What every script begins with. The target is whoever calls `beat`; it counts in a file as long as it runs.
const PRELUDE: &str = "
import array, ctypes, fcntl, mmap, os, signal, socket, struct, sys, tempfile, threading, time
os.closerange(3, 1024)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
home = sys.argv[1]
def path(name): return home + '/' + name
def unavailable(why):
    open(path('new'), 'w').write(str(why))
    os.rename(path('new'), path('unavailable'))
    os._exit(0)
def call(number, *args):
    got = libc.syscall(number, *args)
    if got < 0: unavailable('system call %d: %s' % (number, os.strerror(ctypes.get_errno())))
    return got
def beat():
    out = os.open(path('beat'), os.O_WRONLY | os.O_CREAT)
    os.pwrite(out, b'%12d' % 0, 0)
    open(path('new'), 'w').write(str(os.getpid()))
    os.rename(path('new'), path('pid'))
    n = 0
    while True:
        n += 1
        os.pwrite(out, b'%12d' % n, 0)
        time.sleep(0.005)
def apart():
    'The child goes on as the target, the parent stays outside.'
    if os.fork(): time.sleep(1000)
";

/// What stands in the way of restoring [`RESTORABLE`] here, and what is to be done to have it so.
const RESTORED: &[&str] = &[
    "PID_IN_USE",
    "PORT_IN_USE",
    "LOCK_CONFLICT",
    "FILE_MISSING",
    "FILE_CHANGED",
    "FILE_ACCESS",
    "CODE_DIFFERS",
    "IMAGE_TRUST",
    "IMAGE_INCOMPLETE",
    "IMAGE_DAMAGED",
    "IMAGE_VERSION",
    "PARENT_MISSING",
    "IMAGE_EXISTS",
    "DIRECTORY_USED",
];

/// What is said of a target, or of a peer, without any script.
const ASKED: &[&str] = &[
    "OWN_ANCESTOR",
    "KERNEL_THREAD",
    "PEER_UNREACHABLE",
    "PLAIN",
    "NO_PRIVILEGE",
    "NOT_DUMPABLE",
    "CGROUP_FROZEN",
    "CGROUP_MISSING",
    "TCP_REPAIR",
    "DISK_SPACE",
    "PTRACE_FORBIDDEN",
    "SYSTEM_CALL_MISSING",
    "KERNEL_OLD",
    "KERNEL_OPTION",
];

/// Probes that have to answer yes, with the code of each that does not.
const PROBES: &[(&str, &str)] = &[
    ("ptrace", "PTRACE_FORBIDDEN"),
    ("process-vm", "SYSTEM_CALL_MISSING"),
    ("clone3", "KERNEL_OLD"),
    ("kcmp", "KERNEL_OPTION"),
];

/// A target made of a script, with all that it has started.
struct Target {
    dir: tempfile::TempDir,
    group: Killed,
}

impl Target {
    /// The reason, where the kernel or the machine does not have what it takes.
    fn start(script: &str, user: Option<u32>) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), user, None).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", &format!("{PRELUDE}{}", script.trim_start())]).arg(dir.path()).process_group(0);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("errors")).unwrap());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let target = Self { group: Killed(command.spawn().unwrap()), dir };
        let until = Instant::now() + Duration::from_secs(30);
        while !target.path("pid").exists() {
            if let Ok(reason) = fs::read_to_string(target.path("unavailable")) {
                return Err(reason);
            }
            let errors = fs::read_to_string(target.path("errors")).unwrap_or_default();
            assert!(Instant::now() < until && errors.is_empty(), "the target does not get ready: {errors}{script}");
            std::thread::sleep(Duration::from_millis(2));
        }
        target.goes_on();
        Ok(target)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> String {
        fs::read_to_string(self.path("pid")).unwrap()
    }

    fn goes_on(&self) {
        let beats = || fs::read_to_string(self.path("beat")).unwrap_or_default();
        let (before, until) = (beats(), Instant::now() + Duration::from_secs(30));
        while beats() == before {
            assert!(Instant::now() < until, "it does not go on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.group.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL);
        let _ = self.group.0.wait();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was said: codes, each with its object, or with what has failed.
fn said(output: &Output) -> BTreeMap<String, Vec<String>> {
    let result = events(output).pop().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for blocker in result["blockers"].as_array().into_iter().flatten() {
        for field in ["object", "reason", "remedy"] {
            assert!(!text(&blocker[field]).is_empty(), "{field} of {blocker}");
        }
        found.entry(text(&blocker["code"])).or_default().push(text(&blocker["object"]));
    }
    let failure = &result["failure"];
    if let Some(code) = failure["code"].as_str() {
        assert!(!text(&failure["what"]).is_empty(), "{failure}");
        found.entry(code.to_owned()).or_default().push(text(&failure["what"]));
    }
    found
}

fn code(name: &str) -> String {
    entries().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no code is called {name}")).code.to_string()
}

fn names(output: &Output, name: &str, object: &str) {
    let found = said(output);
    let objects = found
        .get(&code(name))
        .unwrap_or_else(|| panic!("{name} is not said: {found:?} {}", events(output).pop().unwrap()["failure"]));
    assert!(objects.iter().any(|text| text.contains(object)), "{name} does not name {object:?}: {objects:?}");
    assert!(matches!(output.status.code(), Some(1 | 2 | 3 | 5 | 7)), "{:?} after {name}", output.status);
}

/// Whether it can be tried; said where it cannot.
fn can() -> bool {
    let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
    if !root || !python {
        crate::skip!("codes: needs root ({root}) and /usr/bin/python3 ({python})");
    }
    root && python
}

#[test]
fn every_code_is_provoked_or_has_a_reason_why_not() {
    let provoked = SAVED.iter().map(|(name, ..)| *name).chain(RESTORED.iter().chain(ASKED).copied());
    let mut known = BTreeSet::new();
    let count = provoked.clone().count();
    for name in provoked.chain(NOT_HERE.iter().map(|(name, _)| *name)) {
        assert!(known.insert(name), "{name} is listed twice");
    }
    let all: BTreeSet<&str> = entries().map(|entry| entry.name).collect();
    let missing: Vec<_> = all.difference(&known).collect();
    let unknown: Vec<_> = known.difference(&all).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "in no list: {missing:?}; no codes: {unknown:?}");
    assert!(NOT_HERE.iter().all(|(_, reason)| !reason.is_empty()));
    println!("{count} of {} codes are provoked", all.len());
}

#[test]
fn what_cannot_be_saved_is_refused_and_runs_on() {
    if !can() {
        return;
    }
    let (mut provoked, mut wrong) = (0, Vec::new());
    for (name, script, object, options) in SAVED {
        let target = match Target::start(script, None) {
            Ok(target) => target,
            Err(reason) => {
                crate::skip!("{name}: {reason}");
                continue;
            }
        };
        let (pid, image) = (target.pid(), target.path("image"));
        let mut args = vec!["dump", &pid, "-D", image.to_str().unwrap(), "--leave-running", "--json"];
        args.extend(*options);
        let output = migrate(&args).output().unwrap();
        let found = said(&output);
        let named = found.get(&code(name)).is_some_and(|objects| objects.iter().any(|text| text.contains(object)));
        if !named || output.status.code() != Some(3) || image.exists() {
            wrong.push(format!("{name} ({}): {:?}, {found:?}", code(name), output.status.code()));
        }
        target.goes_on();
        provoked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{provoked} of {} kinds were refused", SAVED.len());
}

/// Has files of each kind, a lock and a port.
const RESTORABLE: &str = "
os.mkdir(path('sub'))
def made(name):
    open(path(name), 'w').write(name * 1000)
    return os.open(path(name), os.O_RDONLY)
data, code, lock, deep = made('data'), made('code'), made('lock'), made('sub/deep')
mapped = libc.mmap(None, 4096, 5, 2, code, 0)
os.close(code)
fcntl.flock(lock, fcntl.LOCK_EX)
server = socket.create_server(('127.0.0.1', 0))
open(path('port'), 'w').write(str(server.getsockname()[1]))
beat()";

#[test]
fn what_cannot_be_restored_is_said_before_anything_is_made() {
    if !can() {
        return;
    }
    let mut target = Target::start(RESTORABLE, None).unwrap();
    let (pid, path) = (target.pid(), |name: &str| target.path(name).to_str().unwrap().to_owned());
    let (first, child, image, port) =
        (path("first"), path("child"), path("image"), fs::read_to_string(path("port")).unwrap());
    let run = |args: &[&str]| migrate(args).arg("--json").output().unwrap();
    for args in [
        &["dump", &pid, "-D", &first, "--leave-running"][..],
        &["dump", &pid, "-D", &child, "--parent", &first, "--leave-running"],
    ] {
        assert!(run(args).status.success(), "{args:?}");
    }
    let of = |image: &str, options: &[&str]| run(&[&["restore", "-D", image, "--dry-run"], options].concat());
    // While the original runs.
    names(&of(&first, &["--pids", "same"]), "PID_IN_USE", &pid);
    names(&of(&first, &["--pids", "new"]), "PORT_IN_USE", &port);
    names(&of(&first, &["--pids", "new"]), "LOCK_CONFLICT", &path("lock"));
    names(&run(&["dump", &pid, "-D", &first, "--leave-running"]), "IMAGE_EXISTS", &first);
    fs::create_dir(path("other")).unwrap();
    fs::write(path("other/file"), "").unwrap();
    names(&run(&["dump", &pid, "-D", &path("other"), "--leave-running", "--force"]), "DIRECTORY_USED", "other");
    target.goes_on();
    assert!(run(&["dump", &pid, "-D", &image]).status.success());
    let home = target.dir.path().to_owned();
    target.end();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let restore = |options: &[&str]| of(&image, options);
    // Each in turn, and back.
    let away = path("away");
    let (swap, back) = (
        |name: &str| fs::rename(path(name), &away).unwrap(),
        |name: &str| {
            let _ = fs::remove_file(path(name));
            fs::rename(&away, path(name)).unwrap();
        },
    );
    assert!(restore(&[]).status.success(), "nothing is in the way of {pid}: {:?}", said(&restore(&[])));
    swap("data");
    names(&restore(&[]), "FILE_MISSING", &path("data"));
    fs::write(path("data"), "another").unwrap();
    names(&restore(&[]), "FILE_CHANGED", &path("data"));
    back("data");
    swap("code");
    fs::write(path("code"), "another").unwrap();
    names(&restore(&[]), "CODE_DIFFERS", &path("code"));
    back("code");
    swap("sub");
    std::os::unix::fs::symlink("sub", path("sub")).unwrap();
    names(&restore(&[]), "FILE_ACCESS", &path("sub"));
    back("sub");
    damaged_images(&home, &|args| run(args));
}

/// Each in turn, and back.
fn damaged_images(home: &Path, run: &dyn Fn(&[&str]) -> Output) {
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (first, child, image, away) = (path("first"), path("child"), path("image"), path("away"));
    let restore = || run(&["restore", "-D", &image, "--dry-run"]);
    let (swap, back) = (
        |name: &str| fs::rename(path(name), &away).unwrap(),
        |name: &str| {
            let _ = fs::remove_file(path(name));
            fs::rename(&away, path(name)).unwrap();
        },
    );
    assert!(Path::new(&first).exists());
    let mode = |mode| fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o777);
    names(&restore(), "IMAGE_TRUST", &image);
    mode(0o700);
    swap("first");
    names(&run(&["verify", &child]), "PARENT_MISSING", &child);
    back("first");
    swap("image/manifest.json");
    names(&restore(), "IMAGE_INCOMPLETE", &image);
    let text = fs::read_to_string(&away).unwrap();
    let (mut manifest, _) = Manifest::decode(text.as_bytes()).unwrap();
    manifest.version = 9999;
    fs::write(path("image/manifest.json"), manifest.encode().unwrap().0).unwrap();
    names(&restore(), "IMAGE_VERSION", &image);
    back("image/manifest.json");
    let mut model = fs::read(path("image/model.bin")).unwrap();
    let middle = model.len() / 2;
    model[middle] ^= 0x55;
    fs::write(path("image/model.bin"), model).unwrap();
    names(&restore(), "IMAGE_DAMAGED", &image);
}

#[test]
fn what_a_host_lacks_is_named() {
    if !can() {
        return;
    }
    for (probe, code) in PROBES {
        let output = migrate(&["check", "--json"]).env("MIGRATE_MASK_PROBES", probe).output().unwrap();
        names(&output, code, probe);
    }
    // Half of root's rights.
    let script = "
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
s, _ = server.accept()
beat()";
    let target = Target::start(script, None).unwrap();
    let (pid, image) = (target.pid(), target.path("image").to_str().unwrap().to_owned());
    let within = |words: &[&str], image: &str| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_migrate")).args(["dump", &pid, "-D", image, "--json"]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    names(&within(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], &image), "TCP_REPAIR", "socket:");
    target.goes_on();
    // A disk without room, in a mount namespace that ends with the command.
    let small = target.path("small").to_str().unwrap().to_owned();
    fs::create_dir(&small).unwrap();
    let mount = format!("mount -t tmpfs -o size=64k none {small} && exec \"$@\"");
    let output = within(&["unshare", "--mount", "sh", "-c", &mount, "sh"], &format!("{small}/image"));
    names(&output, "DISK_SPACE", &small);
    target.goes_on();
}

#[test]
fn who_may_not_be_asked_is_named() {
    if !can() {
        return;
    }
    let run = |args: &[&str]| migrate(args).arg("--json").output().unwrap();
    let own = std::process::id().to_string();
    names(&run(&["check", &own]), "OWN_ANCESTOR", &own);
    match fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        true => names(&run(&["check", "2"]), "KERNEL_THREAD", "pid 2"),
        false => crate::skip!("KERNEL_THREAD: no thread of the kernel is to be seen here"),
    }
    names(&run(&["check", "--to", "unix:/nonexistent/socket"]), "PEER_UNREACHABLE", "/nonexistent/socket");
    names(&run(&["check", "--to", "tcp+plain://192.0.2.7:7413"]), "PLAIN", "192.0.2.7");

    // As somebody else.
    const NOBODY: u32 = 65534;
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_migrate"), place.path().join("migrate")).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg(place.path().join("migrate")).args(args).arg("--json").stdin(Stdio::null()).current_dir("/");
        command.env("XDG_CONFIG_HOME", "/nonexistent").env_remove("XDG_RUNTIME_DIR").output().unwrap()
    };
    let asked = |pid: &str| as_nobody(&["check", pid]);
    let target = Target::start("beat()", None).unwrap();
    names(&asked(&target.pid()), "NO_PRIVILEGE", &target.pid());
    target.goes_on();
    let target = Target::start("call(157, 4, 0)\nbeat()", Some(NOBODY)).unwrap();
    names(&asked(&target.pid()), "NOT_DUMPABLE", &target.pid());
    target.goes_on();
    for v2 in [false, true] {
        let Some(freezer) = crate::zoo::frozen::Freezer::make(v2) else { continue };
        let target = Target::start("call(157, 4, 1)\nbeat()", Some(NOBODY)).unwrap();
        fs::write(freezer.place.dir.join("cgroup.procs"), target.pid()).unwrap();
        freezer.set(true);
        assert!(freezer.is_frozen());
        names(&asked(&target.pid()), "CGROUP_FROZEN", &target.pid());
        freezer.set(false);
        target.goes_on();
    }
    let target = Target::start("call(157, 4, 1)\nbeat()", Some(NOBODY)).unwrap();
    let image = target.path("image").to_str().unwrap().to_owned();
    let dump = as_nobody(&["dump", &target.pid(), "-D", &image, "--leave-running"]);
    assert!(dump.status.success(), "{:?}", said(&dump));
    let output = as_nobody(&["restore", "-D", &image, "--dry-run", "--cgroup", "/migrate-nobody/has/this"]);
    names(&output, "CGROUP_MISSING", "/migrate-nobody/has/this");
}
