//! Images of a kernel with another vDSO. There is one kernel here, so the image is altered: in the text that it says was
//! mapped, every function does nothing but end the program. Whoever gets there without a jump does not live to tell.

use super::harness::{Run, Scenario};
use super::tools::compiled;
use migrate_engine::arch::vdso;
use migrate_engine::image::manifest::{self, digest};
use migrate_engine::image::{Bytes, Model, codec};
use migrate_engine::memory::store::ImageDir;
use std::fs;

/// `int3` and `hlt`: two other kernels.
const DEADLY: [u8; 2] = [0xcc, 0xf4];

/// Our own text with functions that consist of this instruction.
fn text_of(kernel: u8) -> Vec<u8> {
    let mut text = vdso::own_text().to_vec();
    for function in vdso::functions(vdso::own_text()) {
        text[function.offset..][..function.size].fill(kernel);
    }
    text
}

/// Makes an image that of another kernel.
fn alter(run: &Run<'_>, n: usize, kernel: u8) {
    const MODEL: &str = "model.bin";
    let image = ImageDir::open(&run.image(n)).unwrap();
    let mut model = image.model().unwrap();
    assert_eq!(model.host.vdso.0, vdso::own_text());
    model.host.vdso = Bytes(text_of(kernel));
    let encoded = codec::encode(&model).unwrap();
    let mut manifest = image.manifest().clone();
    let entry = manifest.files.iter_mut().find(|file| file.name == MODEL).unwrap();
    (entry.bytes, entry.blake3) = (encoded.len() as u64, Some(digest(&encoded)));
    fs::write(run.image(n).join(MODEL), encoded).unwrap();
    fs::write(run.image(n).join(manifest::FILE), manifest.encode().unwrap().0).unwrap();
}

fn model(run: &Run<'_>, n: usize) -> Model {
    ImageDir::open(&run.image(n)).unwrap().model().unwrap()
}

/// Saved under one foreign kernel, then under another, then under this one.
fn through_other_kernels(case: &'static str) {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("needs root");
        return;
    }
    let scenario = Scenario { fixture: "processor", case, ignore: &[], allow: "", busy: true, timed: false };
    let run = Run::start(&scenario, &compiled(scenario.fixture).expect("gcc is there"));
    run.ready().unwrap();
    let mut root = run.pid();
    for n in 0..3 {
        run.dump(root, n, &[]).unwrap();
        let saved = model(&run, n);
        // What a restore has redirected is found by the next dump, whichever kernel that runs under.
        assert_eq!(saved.mms[0].old_vdsos.len(), n, "image {n}");
        assert!(saved.mms[0].vdso.is_some_and(|block| saved.mms[0].old_vdsos.iter().all(|old| {
            old.start != block.text && vdso::leads_to(&old.text.0, old.start, vdso::own_text(), block.text)
        })));
        if let Some(kernel) = DEADLY.get(n) {
            alter(&run, n, *kernel);
        }
        root = run.restore(n, &["--pids", "same"]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run.verify().unwrap();
}

#[test]
fn kept_addresses_lead_to_this_kernels_functions() {
    through_other_kernels("vdso");
}

#[test]
fn a_thread_in_the_middle_of_a_function_goes_on() {
    through_other_kernels("in_vdso");
}

#[test]
fn relatives_that_share_pages_are_led_there_too() {
    if !nix::unistd::geteuid().is_root() {
        crate::skip!("needs root");
        return;
    }
    let scenario =
        Scenario { fixture: "memory", case: "copy_on_write", ignore: &[], allow: "", busy: false, timed: false };
    let run = Run::start(&scenario, &compiled(scenario.fixture).expect("gcc is there"));
    run.ready().unwrap();
    run.dump(run.pid(), 0, &[]).unwrap();
    assert!(model(&run, 0).mms.iter().any(|mm| mm.cow_parent.is_some()));
    alter(&run, 0, DEADLY[0]);
    let root = run.restore(0, &["--pids", "same"]).unwrap();
    run.dump(root, 1, &["--leave-running"]).unwrap();
    let saved = model(&run, 1);
    assert!(saved.mms.len() > 1 && saved.mms.iter().all(|mm| mm.old_vdsos.len() == 1));
    run.verify().unwrap();
}
