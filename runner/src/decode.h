// Image files decoded as Pillow does in run.py: the same pixels, upright, without transparency, 8 bits a channel.
#pragma once

#include "image.h"

namespace edge {

// Each throws Error, naming the file, where the bytes are damaged, cut short or beyond the limits of image.h.
Image decode_png(const Bytes& bytes, const std::string& file);   // any colour type and depth, interlaced or not
Image decode_jpeg(const Bytes& bytes, const std::string& file);  // gray and colour, baseline and progressive
Image decode_pnm(const Bytes& bytes, const std::string& file);   // PGM and PPM, binary, 8 bits

}  // namespace edge
