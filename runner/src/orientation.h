// Which way is up in an image file, by its EXIF or, where that does not say, its XMP: as Pillow reads them in run.py.
#pragma once

#include <string>

#include "files.h"

namespace edge {

// EXIF's orientation: 1 is upright. `exif` is a TIFF header and what follows it, maybe after "Exif\0\0"; both may be empty.
// Throws Error, naming the file, where the EXIF has no TIFF header.
unsigned read_orientation(const Bytes& exif, const std::string& xmp, const std::string& file);

}  // namespace edge
