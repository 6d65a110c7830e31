//! Made by the engine: what stands for files that were held outside the tree (`--stdio`).

use super::describe;
use crate::image::fd::{External, File, FileKind};
use crate::image::{FileId, Model};
use crate::ops::options::Stdio;
use crate::restore::{Error, Options, Result};
use crate::sys::openat2::{open_in_root, reopen};
use crate::sys::{Errno, fcntl};
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Flags that a new description of a terminal or file gets.
const KEPT: u32 = (libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK) as u32;

/// A file that the caller has to give, or one in its place.
pub(crate) fn make(options: &Options, external: &External, flags: u32) -> Result<OwnedFd> {
    if let Some((_, fd)) = options.externals.iter().find(|(key, _)| *key == external.key) {
        return fcntl::duplicate(*fd).map_err(failed("dup", external));
    }
    match options.stdio {
        Stdio::Attach => attached(external, flags),
        Stdio::Null => null(external, flags),
        Stdio::Log if flags as i32 & libc::O_ACCMODE == libc::O_RDONLY => null(external, flags),
        Stdio::Log => log(options, external, flags),
        Stdio::Auto | Stdio::Refuse => {
            let reason = "it was held outside the tree: give --stdio attach, --stdio null or --stdio log";
            Err(Error::Impossible { object: external.link.to_string(), reason: reason.to_owned() })
        }
    }
}

fn failed(operation: &'static str, external: &External) -> impl FnOnce(Errno) -> Error + use<> {
    let object = format!("{} (instead of {})", external.key, external.link);
    move |errno| Error::System { operation, object, errno }
}

/// What this command has under the same number, or its terminal.
fn attached(external: &External, flags: u32) -> Result<OwnedFd> {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let own: Option<BorrowedFd<'_>> = match external.key.as_str() {
        "stdin" => Some(input.as_fd()),
        "stdout" => Some(output.as_fd()),
        "stderr" => Some(error.as_fd()),
        _ => None,
    };
    // One description for input and output is not served by a pipe or file for one of them.
    let both = external.terminal.is_some() && flags as i32 & libc::O_ACCMODE == libc::O_RDWR;
    let terminals = [input.as_fd(), output.as_fd(), error.as_fd()].into_iter().find(|fd| fd.is_terminal());
    let own = own.filter(|fd| !both || fd.is_terminal()).or(terminals.filter(|_| both)).or(own);
    match own {
        // A description of its own: flags that the target sets are not those of whoever has started this command.
        Some(fd) if fd.is_terminal() => reopen(fd, flags & KEPT).map_err(failed("open", external)),
        Some(fd) => fd
            .try_clone_to_owned()
            .map_err(|e| failed("dup", external)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EBADF)))),
        None => open(b"/dev/tty", flags, external),
    }
}

fn null(external: &External, flags: u32) -> Result<OwnedFd> {
    open(b"/dev/null", flags, external)
}

fn open(path: &[u8], flags: u32, external: &External) -> Result<OwnedFd> {
    let root = super::roots::own()?;
    open_in_root(&root, path, (flags & KEPT) | libc::O_NOCTTY as u32, 0).map_err(failed("open", external))
}

/// A file that everything is added to, whoever writes.
fn log(options: &Options, external: &External, flags: u32) -> Result<OwnedFd> {
    let Some(path) = &options.log else { return null(external, flags) };
    let mut options = std::fs::OpenOptions::new();
    let readable = flags as i32 & libc::O_ACCMODE == libc::O_RDWR;
    let opened = options.read(readable).append(true).create(true).mode(0o600).open(path);
    // A terminal is often one description for input and output: whoever reads is at the end of the file, always.
    let opened = opened.and_then(|mut file| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map(|_| file));
    opened.map(OwnedFd::from).map_err(|e| {
        let errno = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        Error::System { operation: "open", object: path.display().to_string(), errno }
    })
}

/// Files of the model that were held outside, each once, with the first descriptor that has it.
pub fn all(model: &Model) -> Vec<(&External, String)> {
    let mut found = Vec::new();
    for (n, file) in model.files.iter().enumerate() {
        let File { kind: FileKind::External(external), .. } = file else { continue };
        let holder = model.tasks.iter().find_map(|task| {
            let table = &model.fd_tables[task.threads.first()?.fd_table.at()];
            let entry = table.entries.iter().find(|e| e.file == FileId::from(n))?;
            Some(format!("pid {} fd {} ({})", task.pid, entry.fd, external.link))
        });
        found.push((external, holder.unwrap_or_else(|| describe(&file.kind))));
    }
    found
}
