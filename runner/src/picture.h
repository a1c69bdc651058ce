// Pictures as the network sees them: the same pixels, bit for bit, as run.py makes of the same file.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "files.h"

namespace edge {

struct Size {
  std::size_t height = 0, width = 0;
  bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

std::string words(const Size& size);  // 480x640: height first

// 8 bits a channel, [height, width, channels] with 1 (gray) or 3 (red, green, blue) channels.
struct Pixels {
  Size size;
  std::size_t channels = 1;
  Bytes data;
};

// What the manifest says of the way from a picture to the input.
struct Preprocess {
  Size size;
  bool gray = false;
  std::array<float, 3> mean{}, std{};
  std::size_t channels() const { return gray ? 1 : 3; }
};

constexpr std::size_t kLargestPicture = 100'000'000;  // pixels; more is taken for a decompression bomb
constexpr std::size_t kLongestSide = 65'535;            // with it no product of sizes leaves 32 bits

// Throws Refused, naming `where`, for a picture without pixels or beyond those limits.
void check_size(const Size& size, const std::string& where);

Pixels read_png(const Bytes& bytes, const std::string& where);

// A file as the network's input, [3, height, width]. Throws Refused, naming the file.
//   .png; .pgm, .ppm (binary, 8 bits); .npy as run.py takes it;
//   .raw: pixels as a camera gives them, of the size `frame`, in the manifest's colours.
std::vector<float> prepare(const std::string& path, const Preprocess& sees, const Size& frame);

// Bilinear with antialiasing, in the fixed point of Pillow's `resize`: width first, then height, as run.py does.
Pixels resized(const Pixels& from, const Size& size);
Pixels recoloured(const Pixels& from, std::size_t channels);
std::vector<float> normalised(const Pixels& pixels, const Preprocess& sees);

}  // namespace edge
