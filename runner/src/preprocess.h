// From a file to the network's input: the same numbers, bit for bit, as run.py makes of the same file.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "image.h"

namespace edge {

enum class Fitting { kStretch, kCrop, kLetterbox };

// The manifest's entry of the same name; pixels.py says what its keys mean.
struct Preprocess {
  Size size;
  bool gray = false;
  std::array<float, 3> mean{}, std{};
  Fitting fitting = Fitting::kStretch;
  double crop_share = 1;
  std::array<std::uint8_t, 3> fill{114, 114, 114};
  Resampling resampling;
  bool blue_first = false;  // the network's channels
  std::size_t channels() const { return gray ? 1 : 3; }
};

// A file as the network's input, [3, height, width]. Throws Error, naming the file.
//   .npy as run.py takes it; .raw: pixels as a camera gives them, of the size `frame`, in the manifest's colours;
//   others by their content: PNG, JPEG, PGM, PPM.
std::vector<float> read_input(const std::string& path, const Preprocess& preprocess, const Size& frame);

// Brings an image, red first, to the size and the channel order that the network sees. Throws Error, naming the file.
Image fit(Image image, const Preprocess& preprocess, const std::string& file);

std::vector<float> normalise(const Image& image, const Preprocess& preprocess);

}  // namespace edge
