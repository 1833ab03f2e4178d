//! `porthole map`: physical memory by owner, as text as wide as the terminal or as a picture.
//! Whose a page is says the hypervisor; what it looks like is decided here.

use std::fmt::Write as _;

use porthole_abi::{PAGE_SIZE, PageOwner};
use porthole_uapi::System;
use serde::Serialize;

use super::list::process_name;
use super::{CommandError, bytes, print, show};
use crate::cli::MapArgs;

/// Columns if standard output is no terminal.
const COLUMNS: usize = 80;
/// Most lines of the picture in text.
const LINES: u64 = 40;
/// Columns before the picture: an address and a blank.
const MARGIN: usize = 12;

/// Pages in a row with the same owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Run {
    start: u64,
    pages: u64,
    owner: &'static str,
    vm: Option<String>,
    #[serde(skip)]
    what: (PageOwner, u64),
}

/// Runs of all RAM in order. What changes meanwhile may be seen before or after.
fn runs(
    look: impl Fn(u64) -> Result<(PageOwner, u64, u64), CommandError>,
) -> Result<Vec<Run>, CommandError> {
    let mut all: Vec<Run> = Vec::new();
    let mut at = 0u64;
    loop {
        let (owner, vm, pages) = look(at)?;
        if pages == 0 {
            return Ok(all);
        }
        let next = pages.checked_mul(PAGE_SIZE).and_then(|n| at.checked_add(n));
        let Some(next) = next else { return Ok(all) };
        match all.last_mut() {
            _ if owner == PageOwner::None => {}
            Some(run) if run.what == (owner, vm) && run.start + run.pages * PAGE_SIZE == at => {
                run.pages += pages;
            }
            _ => all.push(Run {
                start: at,
                pages,
                owner: owner.name(),
                vm: (vm != 0).then(|| format!("{vm:#x}")),
                what: (owner, vm),
            }),
        }
        at = next;
    }
}

/// What stands for an owner in a picture.
struct Mark {
    what: (PageOwner, u64),
    letter: char,
    colour: String,
    label: String,
    pages: u64,
}

/// Owners in the order of the legend: host, hypervisor, the host's shared and pinned pages, then VM by VM.
fn marks(runs: &[Run], name: impl Fn(u64) -> Option<String>) -> Vec<Mark> {
    let mut all: Vec<Mark> = Vec::new();
    let mut vms: Vec<u64> = runs
        .iter()
        .map(|r| r.what.1)
        .filter(|vm| *vm != 0)
        .collect();
    vms.sort_unstable();
    vms.dedup();
    let mut owners: Vec<_> = runs.iter().map(|r| r.what).collect();
    owners.sort_unstable_by_key(|(owner, vm)| (*vm, *owner));
    owners.dedup();
    for what in owners {
        let (owner, vm) = what;
        let index = vms.iter().position(|v| *v == vm).unwrap_or(0);
        let letter = char::from(b'a' + (index % 26) as u8);
        let hue = index * 67 % 360;
        let (letter, colour, kind) = match owner {
            PageOwner::None | PageOwner::Host => ('.', "#e4e4e4".to_owned(), "the host"),
            PageOwner::Hyp => ('H', "#303030".to_owned(), "the hypervisor"),
            PageOwner::VmMemory => (letter, format!("hsl({hue} 65% 45%)"), "private memory"),
            PageOwner::VmMetadata => (
                letter.to_ascii_uppercase(),
                format!("hsl({hue} 65% 25%)"),
                "tables and vCPUs",
            ),
            PageOwner::Window => ('#', "#e03030".to_owned(), "window"),
            PageOwner::Pinned => (
                'p',
                "#b0b060".to_owned(),
                "the host, pinned for a hardware table or a confined device",
            ),
            _ => ('t', "#606030".to_owned(), "a hardware table"),
        };
        let label = match vm {
            0 => kind.to_owned(),
            vm => format!(
                "{kind} of {}",
                name(vm).unwrap_or_else(|| format!("{vm:#x}"))
            ),
        };
        let of_it = runs.iter().filter(|r| r.what == what);
        all.push(Mark {
            what,
            letter,
            colour,
            label,
            pages: of_it.map(|r| r.pages).sum(),
        });
    }
    all
}

/// Stretches of RAM without gaps: first page and pages.
fn stretches(runs: &[Run]) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        match all.last_mut() {
            Some((start, pages)) if *start + *pages * PAGE_SIZE == run.start => *pages += run.pages,
            _ => all.push((run.start, run.pages)),
        }
    }
    all
}

/// Whose a piece of memory is: whoever has most of it, but the host only if nobody else has any, so that nothing
/// small is lost in it.
fn owner(runs: &[Run], start: u64, end: u64) -> Option<(PageOwner, u64)> {
    let inside = |run: &Run| {
        let stop = run.start + run.pages * PAGE_SIZE;
        stop.min(end).saturating_sub(run.start.max(start))
    };
    let mut shares: Vec<((PageOwner, u64), u64)> = Vec::new();
    for run in runs.iter().filter(|run| inside(run) > 0) {
        match shares.iter_mut().find(|(what, _)| *what == run.what) {
            Some((_, share)) => *share += inside(run),
            None => shares.push((run.what, inside(run))),
        }
    }
    let best = shares.iter().max_by_key(|((owner, _), share)| {
        // A window is what one looks for here, and it is small.
        let rank = match owner {
            PageOwner::Host => 0,
            PageOwner::Window => 2,
            _ => 1,
        };
        (rank, *share)
    });
    best.map(|(what, _)| *what)
}

fn text(runs: &[Run], marks: &[Mark], columns: usize) -> String {
    let cells = columns.saturating_sub(MARGIN).clamp(16, 256) as u64;
    let total: u64 = runs.iter().map(|r| r.pages).sum();
    let cell = (total.div_ceil(cells * LINES)).next_power_of_two() * PAGE_SIZE;
    let mut text = String::new();
    for (start, pages) in stretches(runs) {
        let end = start + pages * PAGE_SIZE;
        let mut at = start;
        while at < end {
            // Writing to a string does not fail.
            let _ = write!(text, "{at:>11x} ");
            for _ in 0..cells {
                if at >= end {
                    break;
                }
                let what = owner(runs, at, (at + cell).min(end));
                let mark = marks.iter().find(|m| Some(m.what) == what);
                text.push(mark.map_or('?', |m| m.letter));
                at += cell;
            }
            text.push('\n');
        }
    }
    let _ = writeln!(text, "\na letter stands for {}", bytes(cell));
    for mark in marks {
        let (letter, label) = (mark.letter, &mark.label);
        let _ = writeln!(
            text,
            "  {letter}  {:>10}  {label}",
            bytes(mark.pages * PAGE_SIZE)
        );
    }
    text
}

/// Text inside an XML element.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// A picture: lines of 2 MiB times the columns, runs as rectangles in them, legend below.
fn svg(runs: &[Run], marks: &[Mark]) -> String {
    const WIDTH: u64 = 1024;
    const HEIGHT: u64 = 14;
    const LEFT: u64 = 110;
    let total: u64 = runs.iter().map(|r| r.pages).sum();
    let line = (total.div_ceil(64)).next_power_of_two().max(512) * PAGE_SIZE;
    let (mut body, mut y) = (String::new(), 24);
    let x = |offset: u64| offset as f64 * WIDTH as f64 / line as f64;
    for (first, pages) in stretches(runs) {
        let end = first + pages * PAGE_SIZE;
        for start in (first..end).step_by(line as usize) {
            let stop = (start + line).min(end);
            let _ = writeln!(body, "<text x='4' y='{}'>{start:#x}</text>", y + HEIGHT - 3);
            for run in runs {
                let from = run.start.max(start);
                let to = (run.start + run.pages * PAGE_SIZE).min(stop);
                let Some(mark) = marks.iter().find(|m| m.what == run.what) else {
                    continue;
                };
                if from >= to {
                    continue;
                }
                // A page alone would be too thin to be seen.
                let (left, width) = (x(from - start), x(to - from).max(1.0));
                let _ = writeln!(
                    body,
                    "<rect x='{:.2}' y='{y}' width='{width:.2}' height='{}' fill='{}'>\
                     <title>{:#x} {}: {}</title></rect>",
                    LEFT as f64 + left,
                    HEIGHT - 2,
                    mark.colour,
                    run.start,
                    bytes(run.pages * PAGE_SIZE),
                    escaped(&mark.label)
                );
            }
            y += HEIGHT;
        }
    }
    for mark in marks {
        y += HEIGHT + 4;
        let _ = writeln!(
            body,
            "<rect x='{LEFT}' y='{y}' width='12' height='12' fill='{}'/>\
             <text x='{}' y='{}'>{}: {}</text>",
            mark.colour,
            LEFT + 20,
            y + 10,
            escaped(&mark.label),
            bytes(mark.pages * PAGE_SIZE)
        );
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{}' height='{}' font-family='monospace' \
         font-size='11'>\n<text x='4' y='14'>physical memory by owner, {} a line</text>\n{body}</svg>\n",
        LEFT + WIDTH + 10,
        y + 30,
        bytes(line)
    )
}

/// Columns of the terminal.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let columns = size.map_or(0, |s| usize::from(s.ws_col));
    if columns == 0 { COLUMNS } else { columns }
}

pub(super) fn map(system: &System, args: &MapArgs) -> Result<u8, CommandError> {
    let runs = runs(|pa| Ok(system.page_run(pa)?))?;
    if args.json {
        show(&runs, true, |_| String::new())?;
        return Ok(0);
    }
    let vms = system.list()?;
    let marks = marks(&runs, |handle| {
        let vm = vms.iter().find(|vm| vm.handle == handle && vm.pid > 0)?;
        Some(format!("{} ({handle:#x})", process_name(vm.pid)?))
    });
    match &args.svg {
        Some(path) => {
            std::fs::write(path, svg(&runs, &marks)).map_err(|source| CommandError::Write {
                path: path.display().to_string(),
                source,
            })?;
        }
        None => print(&text(&runs, &marks, columns()))?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x4000_0000;
    const HIGH: u64 = 0x1_0000_0000;

    /// 64 MiB of RAM with a hypervisor, a guest of 8 MiB, a window of a page; 2 MiB elsewhere. Runs come in pieces.
    fn memory(pa: u64) -> Result<(PageOwner, u64, u64), CommandError> {
        let mib = |n: u64| n << 20;
        let table = [
            (0, PageOwner::None, 0),
            (RAM, PageOwner::Host, 0),
            (RAM + mib(2), PageOwner::Hyp, 0),
            (RAM + mib(4), PageOwner::Host, 0),
            (RAM + mib(8), PageOwner::VmMemory, 0x101),
            (RAM + mib(16), PageOwner::VmMetadata, 0x101),
            (RAM + mib(17), PageOwner::Host, 0),
            (RAM + mib(24), PageOwner::Window, 0x101),
            (RAM + mib(24) + PAGE_SIZE, PageOwner::Host, 0),
            (RAM + mib(64), PageOwner::None, 0),
            (HIGH, PageOwner::Host, 0),
            (HIGH + mib(2), PageOwner::None, 0),
            (u64::MAX, PageOwner::None, 0),
        ];
        let at = table.iter().rposition(|(start, ..)| *start <= pa).unwrap();
        let (_, owner, vm) = table[at];
        let pages = match table.get(at + 1) {
            Some((u64::MAX, ..)) | None => 0,
            Some((next, ..)) => (next - pa) / PAGE_SIZE,
        };
        let most = if owner == PageOwner::None {
            pages
        } else {
            pages.min(1000)
        };
        Ok((owner, vm, most))
    }

    fn all() -> (Vec<Run>, Vec<Mark>) {
        let runs = runs(memory).unwrap();
        let marks = marks(&runs, |_| Some("a<b".to_owned()));
        (runs, marks)
    }

    #[test]
    fn pieces_are_put_together_and_gaps_left_out() {
        let (runs, marks) = all();
        assert_eq!(runs.len(), 9);
        assert_eq!(runs.iter().map(|r| r.pages).sum::<u64>(), 66 << 8);
        assert_eq!(
            (runs[3].pages, runs[3].vm.as_deref()),
            (8 << 8, Some("0x101"))
        );
        assert_eq!(stretches(&runs), [(RAM, 64 << 8), (HIGH, 2 << 8)]);
        let pages = |owner| marks.iter().find(|m| m.what.0 == owner).unwrap().pages;
        assert_eq!(pages(PageOwner::Hyp), 2 << 8);
        assert_eq!(pages(PageOwner::Window), 1);
    }

    #[test]
    fn the_text_is_as_wide_as_the_terminal_and_loses_no_window() {
        let (runs, marks) = all();
        for columns in [0, 40, 80, 132] {
            let text = text(&runs, &marks, columns);
            let widest = text
                .lines()
                .take_while(|l| !l.is_empty())
                .map(str::len)
                .max();
            assert!(
                widest.unwrap() <= columns.max(MARGIN + 16),
                "{columns}: {text}"
            );
            let picture = text.split("\n\n").next().unwrap();
            for letter in ['.', 'H', 'a', 'A', '#'] {
                assert!(picture.contains(letter), "{letter} at {columns}: {text}");
            }
            assert!(picture.contains("100000000 "), "{text}");
            assert!(text.contains("8.0 MiB  private memory of a<b"), "{text}");
        }
    }

    #[test]
    fn the_picture_is_well_formed() {
        let (runs, marks) = all();
        let svg = svg(&runs, &marks);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("private memory of a&lt;b: 8.0 MiB"), "{svg}");
        assert!(!svg.contains("a<b"));
        let rects = svg.matches("<rect").count();
        assert!(rects >= runs.len() + marks.len(), "{rects}");
        assert_eq!(
            svg.matches("<title>").count(),
            svg.matches("</title>").count()
        );
    }

    #[test]
    fn a_walk_ends_at_the_end_of_addresses() {
        let top = u64::MAX - PAGE_SIZE + 1;
        let look = |pa| {
            Ok(match pa {
                0 => (PageOwner::None, 0, top / PAGE_SIZE),
                _ => (PageOwner::Host, 0, 16384),
            })
        };
        assert!(runs(look).unwrap().is_empty());
    }
}
