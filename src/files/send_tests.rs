use super::*;

fn pass(sender: &mut Sender, mapped: &HashSet<Bytes>) -> Vec<Op> {
    let mut said = Vec::new();
    let sent = sender.pass::<Error>(mapped, &mut |op, _| {
        said.extend(op.cloned());
        Ok(())
    });
    sent.unwrap();
    said
}

fn bytes(path: &Path) -> Bytes {
    Bytes(path.as_os_str().as_bytes().to_vec())
}

#[test]
fn a_change_that_times_do_not_show_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "first").unwrap();
    let mut sender = Sender::new(vec![bytes(&path)], Vec::new());
    pass(&mut sender, &HashSet::new());
    // In the same instant, for all that a file system of coarse times can tell.
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "other").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    let said = pass(&mut sender, &HashSet::new());
    assert!(said.iter().any(|op| matches!(op, Op::Data { offset: 0 })), "{said:?}");
}

#[test]
fn an_old_file_is_read_once_unless_it_is_mapped() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = bytes(&dir.path().join("data"));
    fs::write(os(&path), "content").unwrap();
    let mut sender = Sender::new(vec![path.clone()], Vec::new());
    pass(&mut sender, &HashSet::new());
    let known = sender.known.get_mut(&path).unwrap();
    assert!(known.always, "it was written a moment ago");
    // As it will be in a few seconds.
    known.always = false;
    assert_eq!(pass(&mut sender, &HashSet::new()), [], "not even opened");
    let said = pass(&mut sender, &[path.clone()].into());
    assert!(matches!(&said[..], [Op::File { .. }, Op::End { .. }]), "read, and found equal: {said:?}");
}

#[test]
fn sockets_stay_and_devices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let mut sender = Sender::new(Vec::new(), vec![bytes(&tree)]);
    let said = pass(&mut sender, &HashSet::new());
    assert!(said.iter().all(|op| matches!(op, Op::Dir { .. })), "{said:?}");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let null = nix::sys::stat::makedev(1, 3);
    if nix::sys::stat::mknod(&tree.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, null).is_ok() {
        let error = sender.pass::<Error>(&HashSet::new(), &mut |_, _| Ok(())).unwrap_err();
        assert!(error.path.ends_with("tree/null"), "{error}");
    }
}
