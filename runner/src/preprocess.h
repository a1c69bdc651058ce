// From a file to the network's input: the same numbers, bit for bit, as run.py makes of the same file.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "image.h"

namespace edge {

// The manifest's entry of the same name.
struct Preprocess {
  Size size;
  bool gray = false;
  std::array<float, 3> mean{}, std{};
  std::size_t channels() const { return gray ? 1 : 3; }
};

// A file as the network's input, [3, height, width]. Throws Error, naming the file.
//   .npy as run.py takes it; .raw: pixels as a camera gives them, of the size `frame`, in the manifest's colours;
//   others by their content: PNG, JPEG, PGM, PPM.
std::vector<float> read_input(const std::string& path, const Preprocess& preprocess, const Size& frame);

std::vector<float> normalise(const Image& image, const Preprocess& preprocess);

}  // namespace edge
