//! A JVM: threads that make garbage, sleep and hand over, a timer, a socket server.

use super::stage::{ADDRESS, Program, Stage, fixture};
use std::process::{Command, Stdio};

const JAVA: Program = Program {
    name: "java",
    needs: &[
        ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", "openjdk-17-jre-headless"),
        ("/usr/lib/jvm/java-17-openjdk-amd64/bin/javac", "openjdk-17-jdk-headless"),
    ],
    user: "",
    prepare,
    command: |stage| {
        let java = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java";
        [java, "-Xmx128m", "-cp", &stage.text(""), "Server", ADDRESS].map(str::to_owned).to_vec()
    },
};

fn prepare(stage: &Stage) -> Result<(), String> {
    let output = Command::new("/usr/lib/jvm/java-17-openjdk-amd64/bin/javac")
        .args(["-d", &stage.text(""), &fixture("Server.java")])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

super::program!(JAVA);
