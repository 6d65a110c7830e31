//! The same by CRIU: pages go to its page server at the other host, the rest into a file system that both hosts see.

use crate::hosts::{Host, Ours};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PORT: &str = "7414";
const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
#[derive(Debug)]
pub struct Criu<'a>(pub &'a Path);

impl Criu<'_> {
    /// Saves a process at the first host, and restores it at the second. Rounds (`pre-dump`) need soft-dirty bits, which the kernel
    /// may not have: it stops the process and sends all of it.
    pub fn moves(&self, [source, destination, _]: &[Host; 3], pid: i64, dir: &Path) -> Result<(), String> {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        let result = self.between(source, destination, pid, dir);
        let _ = std::fs::remove_dir_all(dir);
        result
    }

    fn between(&self, source: &Host, destination: &Host, pid: i64, dir: &Path) -> Result<(), String> {
        let mut server = destination.command(self.0);
        server.args(["page-server", "--port", PORT, "-o", "server.log", "-D"]).arg(dir).stdout(Stdio::null());
        let mut server = Ours(server.stderr(Stdio::null()).spawn().map_err(|e| format!("CRIU: {e}"))?);
        let until = Instant::now() + PATIENCE;
        while !destination.command("ss").args(["-Hltn", &format!("sport = :{PORT}")]).output().is_ok_and(has_output) {
            if Instant::now() > until {
                return Err("CRIU's page server does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut dump = source.command(self.0);
        dump.args(["dump", "-t", &pid.to_string(), "-o", "dump.log", "--page-server", "--port", PORT]);
        succeeds(dump.args(["--address", destination.address, "-D"]).arg(dir))?;
        let _ = server.0.wait();
        let mut restore = destination.command(self.0);
        succeeds(restore.args(["restore", "--restore-detached", "-o", "restore.log", "-D"]).arg(dir))
    }
}

fn has_output(output: std::process::Output) -> bool {
    !output.stdout.is_empty()
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}
