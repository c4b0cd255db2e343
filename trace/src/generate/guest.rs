//! A guest operating system's address spaces, as far as a profile needs them: which pages are
//! mapped, under which roots and PCIDs.

use super::{Generator, Profile};
use crate::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use crate::op::{Access, AccessKind, Op, Perms};
use crate::regs::{CR3_NOFLUSH, Regs};

/// Address spaces of a vCPU: Linux hands out 6 PCIDs on each CPU (TLB_NR_DYN_ASIDS).
pub(super) const SPACES: usize = 6;
/// Pages of a space that are ever used.
pub(super) const PAGES: u64 = 256;
/// Those that take half of the accesses.
const HOT: u64 = 32;
/// Kernel pages, the same in every space of a vCPU.
pub(super) const KERNEL_PAGES: u64 = 64;
/// Where the pages of a process begin: where a Linux program is linked.
const USER: u64 = 0x40_0000;
/// Where the kernel's pages begin: Linux's direct map.
const KERNEL: u64 = 0xffff_8880_0000_0000;
/// Roots and top tables, above what the machine allocates for others and below data.
const ROOTS: u64 = 0x0800_0000;
/// Data frames lie from here to 1 GiB.
const FRAMES: u64 = 0x1000_0000 >> 12;
/// Data frames of a vCPU, that come round again and again: more than its pages.
pub(super) const OWN_FRAMES: u64 = 4096;
/// From one vCPU's first data frame to the next one's: 512 of them end below 1 GiB.
pub(super) const FRAME_STRIDE: u64 = 375;
/// The PCID bit of the user half under page-table isolation, as Linux has it.
pub(super) const USER_PCID: u64 = 0x800;
/// CR4 at the end of the recorded boot: PSE PAE MCE PGE OSFXSR OSXMMEXCPT UMIP FSGSBASE PCIDE OSXSAVE SMEP
/// SMAP.
pub(super) const CR4: u64 = 0x37_0ef0;

/// One process.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// The root of the kernel half; the only one without isolation.
    pub root: u64,
    /// The root of the user half.
    pub user_root: u64,
    /// The top table of the user's part, that both roots point at.
    tables: u64,
    pub pcid: u64,
    /// Its roots are linked.
    ready: bool,
    /// The frame of each page, 0 where none is mapped.
    pub frames: Vec<u64>,
}

/// One vCPU's software.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub spaces: Vec<Space>,
    /// The space that runs.
    pub current: usize,
    /// The top table of the kernel's part.
    kernel_tables: u64,
    /// Frames of the kernel's pages.
    pub kernel: Vec<u64>,
    /// The first data frame, and how many were handed out.
    first_frame: u64,
    frames: u64,
}

/// The tables of a vCPU: three for each space and one for the kernel.
const TABLES: u64 = SPACES as u64 * 3 + 1;

impl Guest {
    pub fn new(profile: Profile, v: u16) -> Self {
        // The vCPUs of one process share its space: that of vCPU 0.
        let owner = if profile == Profile::MmapChurn { 0 } else { u64::from(v) };
        let base = ROOTS + owner * TABLES * PAGE_BYTES;
        let space = |n: u64| {
            let root = base + (1 + n * 3) * PAGE_BYTES;
            Space {
                root,
                user_root: root + PAGE_BYTES,
                tables: root + 2 * PAGE_BYTES,
                pcid: n + 1,
                ready: false,
                frames: vec![0; PAGES as usize],
            }
        };
        Self {
            spaces: (0..SPACES as u64).map(space).collect(),
            current: 0,
            kernel_tables: base,
            kernel: vec![0; KERNEL_PAGES as usize],
            first_frame: FRAMES + u64::from(v) * FRAME_STRIDE,
            frames: 0,
        }
    }

    /// A data frame. They come round again: nothing here tells them apart by content.
    pub fn frame(&mut self) -> u64 {
        self.frames += 1;
        (self.first_frame + self.frames % OWN_FRAMES) * PAGE_BYTES
    }
}

/// The registers that vCPU `v` starts with: Linux's 4-level paging in its first space.
pub(super) fn start(profile: Profile, v: u16) -> Regs {
    let guest = Guest::new(profile, v);
    let space = &guest.spaces[0];
    Regs {
        cr0: 0x8005_0033,
        cr3: space.root | space.pcid,
        cr4: CR4,
        efer: 0xd01,
        ..Regs::default()
    }
}

/// The rights of a leaf.
pub(super) const fn perms(write: bool, user: bool, global: bool) -> Perms {
    Perms { read: true, write, exec: true, user, global }
}

/// The address of a user page.
pub(super) const fn user_page(page: u64) -> Gva {
    Gva(USER + page * PAGE_BYTES)
}

/// The address of a kernel page.
pub(super) const fn kernel_page(page: u64) -> Gva {
    Gva(KERNEL + page * PAGE_BYTES)
}

impl Generator {
    /// Links the roots of a space to its tables before its first use.
    pub(super) fn prepare(&mut self, v: usize, space: usize) {
        let guest = &mut self.guests[v];
        let kernel_tables = Gpa(guest.kernel_tables);
        let first = guest.spaces.iter().all(|space| !space.ready);
        let at = &mut guest.spaces[space];
        if std::mem::replace(&mut at.ready, true) {
            return;
        }
        let (root, user_root, tables) = (Gpa(at.root), Gpa(at.user_root), Gpa(at.tables));
        for (gpa, level) in [(root, 4), (user_root, 4), (tables, 3)] {
            self.put(v, Op::Table { gpa, level });
        }
        if first {
            self.put(v, Op::Table { gpa: kernel_tables, level: 3 });
        }
        let link = |gva, table, user, root| Op::Link {
            gva,
            level: 4,
            table,
            perms: perms(true, user, false),
            root: Some(root),
        };
        self.put(v, link(user_page(0), tables, true, root));
        self.put(v, link(user_page(0), tables, true, user_root));
        self.put(v, link(kernel_page(0), kernel_tables, false, root));
    }

    /// A page of the working set: half of the choices fall on an eighth of it.
    pub(super) fn pick(&mut self) -> u64 {
        let hot = self.random.chance(500_000);
        self.random.below(if hot { HOT } else { PAGES })
    }

    /// Maps a user page of the current space if it is not mapped. The kernel does it: the root is
    /// given, so that it does not matter which half runs.
    pub(super) fn fault_in(&mut self, v: usize, page: u64, write: bool) {
        let guest = &mut self.guests[v];
        let current = guest.current;
        if guest.spaces[current].frames[page as usize] == 0 {
            let frame = guest.frame();
            guest.spaces[current].frames[page as usize] = frame;
            self.map_user(v, page, frame, write);
        }
    }

    /// Stores the leaf of a user page of the current space.
    pub(super) fn map_user(&mut self, v: usize, page: u64, frame: u64, write: bool) {
        let root = self.guests[v].spaces[self.guests[v].current].root;
        let op = Op::Map {
            gva: user_page(page),
            gpa: Gpa(frame),
            size: PageSize::Size4K,
            perms: perms(write, true, false),
            root: Some(Gpa(root)),
        };
        self.put(v, op);
    }

    /// A number of accesses of the user to the current space.
    pub(super) fn user_accesses(&mut self, v: usize, count: u64) {
        for _ in 0..count {
            let page = self.pick();
            self.fault_in(v, page, true);
            let kind = self.kind();
            self.access(v, user_page(page), kind, true);
        }
    }

    /// A number of accesses of the kernel to its own pages.
    pub(super) fn kernel_accesses(&mut self, v: usize, count: u64, global: bool) {
        for _ in 0..count {
            let page = self.random.below(KERNEL_PAGES);
            self.kernel_in(v, page, global);
            let kind = self.kind();
            self.access(v, kernel_page(page), kind, false);
        }
    }

    /// Maps a kernel page if it is not mapped.
    pub(super) fn kernel_in(&mut self, v: usize, page: u64, global: bool) {
        if self.guests[v].kernel[page as usize] == 0 {
            self.map_kernel(v, page, global);
        }
    }

    /// Gives a kernel page a frame, or another one.
    pub(super) fn map_kernel(&mut self, v: usize, page: u64, global: bool) {
        let frame = self.guests[v].frame();
        self.guests[v].kernel[page as usize] = frame;
        let op = Op::Map {
            gva: kernel_page(page),
            gpa: Gpa(frame),
            size: PageSize::Size4K,
            perms: perms(true, false, global),
            root: Some(Gpa(self.guests[v].spaces[self.guests[v].current].root)),
        };
        self.put(v, op);
    }

    /// Of ten accesses seven are reads, two writes, one a fetch.
    pub(super) fn kind(&mut self) -> AccessKind {
        match self.random.below(10) {
            0..7 => AccessKind::Read,
            7..9 => AccessKind::Write,
            _ => AccessKind::Exec,
        }
    }

    pub(super) fn access(&mut self, v: usize, gva: Gva, kind: AccessKind, user: bool) {
        self.put(v, Op::Access(Access { gva, kind, user, ac: false }));
    }

    /// MOV CR3 to the kernel half of the current space.
    pub(super) fn enter_kernel(&mut self, v: usize, noflush: bool) {
        let space = &self.guests[v].spaces[self.guests[v].current];
        let hint = if noflush { CR3_NOFLUSH } else { 0 };
        self.put(v, Op::Cr3(space.root | space.pcid | hint));
    }

    /// MOV CR3 to the user half of the current space.
    pub(super) fn enter_user(&mut self, v: usize, noflush: bool) {
        let space = &self.guests[v].spaces[self.guests[v].current];
        let hint = if noflush { CR3_NOFLUSH } else { 0 };
        self.put(v, Op::Cr3(space.user_root | space.pcid | USER_PCID | hint));
    }

    /// Another space runs from here on; its kernel half is loaded.
    pub(super) fn switch(&mut self, v: usize, noflush: bool) {
        let other = self.random.between(1, SPACES as u64 - 1) as usize;
        let guest = &mut self.guests[v];
        guest.current = (guest.current + other) % SPACES;
        let current = guest.current;
        // The first use of a PCID flushes.
        let first = !guest.spaces[current].ready;
        self.prepare(v, current);
        self.enter_kernel(v, noflush && !first);
    }
}
