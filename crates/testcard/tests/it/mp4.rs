//! As much of the MP4 format as it takes to see that a file is what was asked for.

use std::ops::Range;

pub(crate) struct Mp4<'a>(pub(crate) &'a [u8]);

impl Mp4<'_> {
    /// Name and payload of the boxes that fill a part of the file.
    fn boxes_in(&self, part: Range<usize>) -> Vec<(String, Range<usize>)> {
        let mut boxes = Vec::new();
        let mut start = part.start;
        while start < part.end {
            let length = self.number(start) as usize;
            assert!(length >= 8 && start + length <= part.end, "a box reaches over its parent");
            let name = String::from_utf8_lossy(&self.0[start + 4..start + 8]).into_owned();
            boxes.push((name, start + 8..start + length));
            start += length;
        }
        boxes
    }

    /// Names of the outermost boxes, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.boxes_in(0..self.0.len()).into_iter().map(|(name, _)| name).collect()
    }

    /// The payload of the box at this path of names.
    pub(crate) fn payload(&self, path: &str) -> Range<usize> {
        path.split('/').fold(0..self.0.len(), |part, wanted| {
            let boxes = self.boxes_in(part);
            let found = boxes.into_iter().find(|(name, _)| name == wanted);
            found.unwrap_or_else(|| panic!("no box {wanted} of {path}")).1
        })
    }

    pub(crate) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    /// The number at this offset in the payload of the box at this path.
    pub(crate) fn field(&self, path: &str, offset: usize) -> u32 {
        self.number(self.payload(path).start + offset)
    }

    /// Width and height from the track's header, which are in units of 1/65536.
    pub(crate) fn size(&self) -> (u32, u32) {
        let header = "moov/trak/tkhd";
        (self.field(header, 76) >> 16, self.field(header, 80) >> 16)
    }

    pub(crate) fn frames(&self) -> u32 {
        self.field("moov/trak/mdia/minf/stbl/stsz", 8)
    }

    /// Seconds that the frames last, each alone, and all of them as each header says.
    pub(crate) fn durations(&self) -> (Vec<f64>, [f64; 3]) {
        let movie_scale = f64::from(self.field("moov/mvhd", 12));
        let media_scale = f64::from(self.field("moov/trak/mdia/mdhd", 12));
        let table = self.payload("moov/trak/mdia/minf/stbl/stts").start;
        let mut frames = Vec::new();
        for entry in 0..self.number(table + 4) as usize {
            let (count, ticks) = (table + 8 + entry * 8, table + 12 + entry * 8);
            let seconds = f64::from(self.number(ticks)) / media_scale;
            frames.extend((0..self.number(count)).map(|_| seconds));
        }
        let movie = f64::from(self.field("moov/mvhd", 16)) / movie_scale;
        let track = f64::from(self.field("moov/trak/tkhd", 20)) / movie_scale;
        let media = f64::from(self.field("moov/trak/mdia/mdhd", 16)) / media_scale;
        (frames, [movie, track, media])
    }

    /// The frames as an H.264 stream with start codes. They lie in one chunk.
    pub(crate) fn stream(&self) -> Vec<Vec<u8>> {
        let table = "moov/trak/mdia/minf/stbl/";
        assert_eq!(self.field(&format!("{table}stco"), 4), 1, "chunks");
        let mut start = self.field(&format!("{table}stco"), 8) as usize;
        let data = self.payload("mdat");
        assert_eq!(start, data.start, "the chunk's offset");
        let sizes = self.payload(&format!("{table}stsz")).start;
        assert_eq!(self.number(sizes + 4), 0, "sizes are listed one by one");
        let frames = (0..self.frames() as usize).map(|frame| {
            let mut units = Vec::new();
            let end = start + self.number(sizes + 12 + frame * 4) as usize;
            while start < end {
                let length = self.number(start) as usize;
                units.extend_from_slice(&[0, 0, 0, 1]);
                units.extend_from_slice(&self.0[start + 4..start + 4 + length]);
                start += 4 + length;
            }
            assert_eq!(start, end, "a frame ends with its last unit");
            units
        });
        let frames = frames.collect();
        assert_eq!(start, data.end, "the frames fill the data");
        frames
    }
}
