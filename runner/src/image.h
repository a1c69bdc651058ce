// Images in memory, and what Pillow does with them in run.py: the same pixels, bit for bit.
#pragma once

#include <string>

#include "files.h"

namespace edge {

struct Size {
  std::size_t height = 0, width = 0;
  bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

std::string to_string(const Size& size);  // 480x640: height first

// 8 bits a channel, [height, width, channels] with 1 (gray) or 3 (red, green, blue) channels.
struct Image {
  Size size;
  std::size_t channels = 1;
  Bytes pixels;
};

constexpr std::size_t kMaxPixels = 100'000'000;  // more is taken for a decompression bomb
constexpr std::size_t kMaxSide = 65'535;         // with it no product of sizes leaves 32 bits

// Throws Error, naming the file, for an image without pixels or beyond those limits.
void check_image_size(const Size& size, const std::string& file);

// Turns and mirrors the pixels as EXIF's orientation 1 to 8 asks, so that the image is upright; others change nothing.
Image apply_orientation(Image image, unsigned orientation);

Image convert_channels(Image image, std::size_t channels);

enum class Interpolation { kBilinear, kBicubic, kArea };

// How run.py and pixels.py resize: width first, then height, in the fixed point of Pillow's `resize`.
struct Resampling {
  Interpolation interpolation = Interpolation::kBilinear;
  bool antialias = true;  // false: each new pixel is made of the nearest two or four, in each direction
};

// A part of an image: where it begins, and its size.
struct Window {
  std::size_t top = 0, left = 0;
  Size size;
};

// Resizes the whole image to `size`, of which only the window is made.
Image resize(Image image, const Size& size, const Window& window, const Resampling& resampling);

}  // namespace edge
