//! nginx: a master and its workers, a download in progress, a connection that is kept alive.

use super::stage::{ADDRESS, Program, Stage};

const NGINX: Program = Program {
    name: "nginx",
    needs: &[("/usr/sbin/nginx", "nginx-light")],
    user: "",
    prepare,
    command: |stage| ["/usr/sbin/nginx", "-c", &stage.text("nginx.conf")].map(str::to_owned).to_vec(),
};

fn prepare(stage: &Stage) -> Result<(), String> {
    let dir = stage.text("");
    std::fs::create_dir(stage.path("root")).map_err(|e| e.to_string())?;
    stage.write("root/small", "a small file\n".repeat(100))?;
    let large: Vec<u8> = (0..8_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    stage.write("root/large", large)?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {dir}{kind};\n"))
        .concat();
    stage.write(
        "nginx.conf",
        format!(
            "daemon off;\nuser www-data;\nworker_processes 3;\npid {dir}nginx.pid;\nerror_log {dir}error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n{temporary}  access_log {dir}access.log;\n  keepalive_timeout 600;\n  keepalive_requests 100000000;\n\
             \x20 limit_conn_zone $binary_remote_addr zone=clients:1m;\n\
             \x20 server {{\n    listen {ADDRESS}:7002;\n    root {dir}root;\n    limit_conn clients 100;\n\
             \x20   location /large {{ limit_rate 2m; }}\n  }}\n}}\n"
        ),
    )
}

super::program!(NGINX);
