//! The command as a user meets it: usage, help, and errors of one line that say what was wrong and what to do.
//! On a machine without the driver nothing runs, which is what most of these want.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, is_match};

/// A device that is nowhere.
const NOWHERE: &str = "--device=/nonexistent/porthole";

fn porthole(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("porthole")
        .unwrap()
        .args(args)
        .write_stdin("")
        .assert()
}

/// One line on standard error, nothing on standard output.
fn refused(args: &[&str], status: i32, says: &[&str]) {
    let mut assert = porthole(args)
        .code(status)
        .stdout("")
        .stderr(is_match(r"\Aporthole: [^\n]+\n\z").unwrap());
    for part in says {
        assert = assert.stderr(contains(*part));
    }
}

fn kernel(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn every_command_says_that_the_hypervisor_is_missing() {
    for command in ["info", "list", "audit", "log", "stats"] {
        refused(
            &[NOWHERE, command],
            1,
            &[
                "no hypervisor: /nonexistent/porthole is missing",
                "boot this machine under Porthole",
            ],
        );
    }
    let image = kernel(&[0; 64]);
    let path = image.path().to_str().unwrap();
    refused(
        &[NOWHERE, "run", "--kernel", path, "--mem", "16M"],
        1,
        &["no hypervisor"],
    );
}

#[test]
fn a_missing_kernel_or_initrd_is_named() {
    let image = kernel(&[0; 64]);
    let path = image.path().to_str().unwrap();
    refused(
        &[
            NOWHERE,
            "run",
            "--kernel",
            "/nonexistent/Image",
            "--mem",
            "16M",
        ],
        1,
        &["cannot read kernel /nonexistent/Image", "check the path"],
    );
    refused(
        &[
            NOWHERE,
            "run",
            "--kernel",
            path,
            "--initrd",
            "/nonexistent/initrd",
            "--mem",
            "16M",
        ],
        1,
        &["cannot read initrd /nonexistent/initrd"],
    );
}

#[test]
fn files_that_are_no_kernel_say_what_they_are() {
    for (bytes, says) in [
        (&b""[..], "the file is empty"),
        (
            b"\x1f\x8b\x08\0\0\0\0\0",
            "gzip-compressed; unpack it first",
        ),
        (b"\x7fELF\x02\x01\x01\0", "ELF file; make a flat binary"),
    ] {
        let file = kernel(bytes);
        let path = file.path().to_str().unwrap();
        refused(
            &[NOWHERE, "run", "--kernel", path, "--mem", "16M"],
            1,
            &[path, says],
        );
    }
}

#[test]
fn a_kernel_larger_than_memory_says_what_it_needs() {
    let file = kernel(&vec![0; 3 << 20]);
    let path = file.path().to_str().unwrap();
    refused(
        &[NOWHERE, "run", "--kernel", path, "--mem", "2M"],
        1,
        &["needs 0x300000 bytes of RAM", "raise --mem"],
    );
}

#[test]
fn bad_values_name_option_value_and_rule() {
    for (option, value, says) in [
        ("--mem", "lots", "'lots' is not a size"),
        ("--mem", "0", "a guest has 2M to 62G"),
        ("--mem", "1000G", "a guest has 2M to 62G"),
        ("--cpus", "0", "1..=8"),
        ("--cpus", "99", "1..=8"),
        ("--cpus", "two", "no whole number"),
        ("--window", "3M", "a power of two"),
        ("--console", "tty", "it has stdio, echo, off, file"),
        ("--disk", "a,colour=red", "a disk has no 'colour'"),
        ("--net", "tap=", "no name of an interface"),
        ("--vsock", "cid=3", "needs cid and path"),
        ("--swiotlb", "maybe", "require"),
        ("--name", "two words", "1 to 15 printable characters"),
    ] {
        refused(
            &["run", "--kernel", "x", option, value],
            2,
            &[option, value, says],
        );
    }
}

#[test]
fn missing_options_are_named() {
    refused(&["run"], 2, &["--kernel <IMAGE>", "--mem <SIZE>"]);
    refused(
        &["frobnicate"],
        2,
        &["unrecognized subcommand 'frobnicate'"],
    );
    refused(&["info", "--what"], 2, &["unexpected argument '--what'"]);
}

#[test]
fn help_names_every_command_and_each_exit_status() {
    porthole(&["--help"]).success().stdout(
        contains("run")
            .and(contains("info"))
            .and(contains("list"))
            .and(contains("audit"))
            .and(contains("log"))
            .and(contains("stats")),
    );
    porthole(&["run", "--help"]).success().stdout(
        contains("Exit status:")
            .and(contains("SYSTEM_RESET"))
            .and(contains("crashed")),
    );
    porthole(&["--version"]).success();
}

#[test]
fn a_device_that_is_no_driver_is_an_error() {
    let file = kernel(b"not a device");
    let device = format!("--device={}", file.path().display());
    refused(&[&device, "info"], 1, &["INFO"]);
}

#[test]
fn a_configuration_gives_what_the_command_line_does_not() {
    let image = kernel(&[0; 64]);
    let path = image.path().to_str().unwrap();
    let config = kernel(format!("kernel = '{path}'\nmem = '16M'\n").as_bytes());
    let file = config.path().to_str().unwrap();
    refused(&[NOWHERE, "run", "--config", file], 1, &["no hypervisor"]);
    let other = ["--kernel", "/nonexistent/Image"];
    refused(
        &[&[NOWHERE, "run", "--config", file], &other[..]].concat(),
        1,
        &["cannot read kernel /nonexistent/Image"],
    );
    let config = kernel(b"mem = '16M'");
    let file = config.path().to_str().unwrap();
    refused(
        &[NOWHERE, "run", "--config", file],
        1,
        &["kernel is missing", "--kernel"],
    );
}

#[test]
fn a_bad_configuration_is_told_with_file_line_and_key() {
    let config = kernel(b"mem = '16M'\n[[disk]]\npath = 'x'\ncolour = 'red'\n");
    let file = config.path().to_str().unwrap();
    let place = format!("{file}:4: `colour = 'red'`: a disk has no 'colour'");
    refused(&[NOWHERE, "run", "--config", file], 1, &[&place]);
}

#[test]
fn devices_of_one_name_are_refused_before_anything_starts() {
    let line = [
        "run", "--kernel", "x", "--mem", "16M", "--disk", "a,id=d", "--disk", "b,id=d",
    ];
    refused(&line, 1, &["two devices are called 'd'", "another id="]);
}

#[test]
fn shells_and_man_get_what_they_read() {
    for (shell, says) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef porthole"),
        ("fish", "complete -c porthole"),
    ] {
        porthole(&["completions", shell])
            .success()
            .stdout(contains(says));
    }
    porthole(&["man"])
        .success()
        .stdout(contains(".TH porthole 1"));
    let options = contains("swiotlb").and(contains("Exit status"));
    porthole(&["man", "run"]).success().stdout(options);
    refused(&["man", "sing"], 1, &["no subcommand 'sing'"]);
    for words in [&["man", "dma-confine"][..], &["man", "dma", "confine"]] {
        porthole(words).success().stdout(contains("SIZE"));
    }
    refused(&["man", "dma-sing"], 1, &["no subcommand 'dma-sing'"]);
}
