//! `--print-config`: the options of a run as the TOML file that amounts to the same, whatever of them came from a file.
//! How such a file is read is in `config`; each device names its own keys.

use std::fmt::Write;

use super::keys::{Keys, mode_name};
use super::run::RunOptions;

/// A key of a device with its value; a switch that is on has none.
pub type Entry = (&'static str, Option<String>);

/// The file. None if a path is no text (UTF-8), for then no such file can have it.
pub fn text(options: &RunOptions) -> Option<String> {
    // Each by its name, so that none is forgotten.
    let RunOptions {
        config: _,
        print_config: _,
        kernel,
        initrd,
        cmdline,
        mem,
        cpus,
        cpu_affinity,
        name,
        serial,
        console,
        disk,
        net,
        vsock,
        rng,
        window,
        swiotlb,
        unprotected,
        dt_pool,
        swiotlb_feature_bit,
        swiotlb_cfg_type,
        prefault,
        seed,
        measurement,
    } = options;
    let path = |path: &std::path::PathBuf| quoted(&path.to_string_lossy());
    let switch = |on: &bool| on.to_string();
    let single = [
        ("kernel", kernel.as_ref().map(path)),
        ("initrd", initrd.as_ref().map(path)),
        ("cmdline", cmdline.as_ref().map(|c| quoted(&c.0))),
        ("mem", mem.map(|m| quoted(&m.0.to_string()))),
        ("cpus", cpus.map(|c| c.0.to_string())),
        (
            "cpu-affinity",
            cpu_affinity.as_ref().map(|a| quoted(&a.to_string())),
        ),
        ("name", name.as_ref().map(|n| quoted(&n.0))),
        ("serial", serial.as_ref().map(|s| quoted(&s.to_string()))),
        ("window", window.map(|w| quoted(&w.0.to_string()))),
        ("swiotlb", swiotlb.map(|m| quoted(&mode_name(m)))),
        ("unprotected", unprotected.as_ref().map(switch)),
        ("dt-pool", dt_pool.map(|p| quoted(&p.0.to_string()))),
        (
            "swiotlb-feature-bit",
            swiotlb_feature_bit.map(|b| b.to_string()),
        ),
        ("swiotlb-cfg-type", swiotlb_cfg_type.map(|t| t.to_string())),
        ("prefault", prefault.as_ref().map(switch)),
        ("seed", seed.as_ref().map(switch)),
        ("measurement", measurement.as_ref().map(switch)),
    ];
    let mut out = String::new();
    for (key, value) in single {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{key} = {value}");
        }
    }
    tables(&mut out, "[console]", console.as_slice());
    tables(&mut out, "[[disk]]", disk);
    tables(&mut out, "[[net]]", net);
    tables(&mut out, "[vsock]", vsock.as_slice());
    tables(&mut out, "[rng]", rng.as_slice());
    // What stands for bytes that are no text.
    (!out.contains(char::REPLACEMENT_CHARACTER)).then_some(out)
}

fn tables<T: Keys + Clone>(out: &mut String, head: &str, devices: &[T]) {
    for device in devices {
        let _ = writeln!(out, "\n{head}");
        let common = device.clone().device().entries();
        for (key, value) in device.entries().into_iter().chain(common) {
            let value = value.map_or("true".to_owned(), |text| quoted(&text));
            let _ = writeln!(out, "{key} = {value}");
        }
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::cli::config;
    use crate::cli::run::tests::options;

    /// The options that the printed file has.
    fn read_back(options: &RunOptions) -> RunOptions {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text(options).unwrap()).unwrap();
        config::read(file.path()).unwrap()
    }

    #[test]
    fn what_is_printed_is_read_as_what_was_meant() {
        for line in [
            "--kernel Image --mem 64M",
            "--kernel Image --mem 2052K --cpus 2 --cpu-affinity 0=1:1=0 --name web --initrd i --cmdline console=hvc0",
            "--kernel k --mem 3G --serial off --console off --prefault --seed=false --measurement",
            "--kernel k --mem 1G --serial file=/tmp/s --console file=/a,,b,window=64K --rng",
            "--kernel k --mem 1G --unprotected --swiotlb hint --window 2M --rng=src=/x,id=noise,group=g",
            "--kernel k --mem 1G --dt-pool 16M --serial stdio --console echo,swiotlb=offer",
            "--kernel k --mem 1G --swiotlb-feature-bit 31 --swiotlb-cfg-type 77 --vsock cid=7,path=/run/v",
            "--kernel k --mem 1G --disk a=b,,c,ro,direct,format=raw --disk d,format=qcow2,queues=2,queue-size=64",
            "--kernel k --mem 1G --net tap=t,create,mac=52:54:00:ab:cd:01,queues=2 --net socket=/s,listen,mtu=900",
            "--kernel k --mem 1G --net user,tcp=127.0.0.1/2222:22+80,udp=::1/53:5353,queue-size=8,id=n",
            "--kernel k --mem 1G --net tap=t --net socket=/s --console stdio",
        ] {
            let meant = options(line);
            let read = read_back(&meant);
            assert_eq!(read, meant, "{line}\n{}", text(&meant).unwrap());
        }
    }

    #[test]
    fn every_letter_of_a_path_and_a_command_line_comes_back() {
        let mut meant = options("--kernel k --mem 64M --disk d");
        meant.kernel = Some("a \"quoted\" \\ \u{e4}\u{1}\u{7f}\n[x]\t='".into());
        meant.disk[0].path = "#\"\"\"\r".into();
        assert_eq!(read_back(&meant), meant);
        meant.initrd = Some(OsStr::from_bytes(b"\xff").into());
        assert_eq!(text(&meant), None);
    }

    #[test]
    fn a_file_and_the_command_line_come_out_as_one() {
        let file = read_back(&options("--kernel a --mem 64M --disk one,id=x --rng"));
        let both = options("--config f --mem 1G --disk two,id=x --disk three").before(file);
        let said = text(&both).unwrap();
        let wanted = "kernel = \"a\"\nmem = \"1024M\"\n\n[[disk]]\npath = \"two\"\nid = \"x\"\n\n\
                      [[disk]]\npath = \"three\"\n\n[rng]\nsrc = \"/dev/urandom\"\n";
        assert_eq!(said, wanted);
    }
}
