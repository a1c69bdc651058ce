#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "decode.h"
#include "error.h"
#include "numpy_files.h"

namespace edge {
namespace {

constexpr std::size_t kMaxFile = 3 * kMaxPixels + 4096;

Image image_of_raw(Bytes bytes, const std::string& file, const Preprocess& preprocess, const Size& frame) {
  check_image_size(frame, file);
  const std::size_t expected = frame.height * frame.width * preprocess.channels();
  if (bytes.size() != expected) {
    throw Error(file + " has " + std::to_string(bytes.size()) + " bytes; a " + (preprocess.gray ? "gray" : "rgb") + " frame of " +
                to_string(frame) + " (height x width) has " + std::to_string(expected) + "; --frame names another size");
  }
  return {frame, preprocess.channels(), std::move(bytes)};
}

Image image_of_array(Array array, const std::string& file, const Preprocess& preprocess) {
  const auto& shape = array.shape;
  const bool gray = shape.size() == 2, colour = shape.size() == 3 && shape[2] == 3;
  if (array.dtype != "|u1" || !(preprocess.gray ? gray : colour)) {
    throw Error(file + " holds " + array.describe() + "; accepted are uint8 [height, width] for gray, uint8 [height, width, 3] for rgb " +
                "(this model: " + (preprocess.gray ? "gray" : "rgb") + "), or float32 (1, 3, " + std::to_string(preprocess.size.height) +
                ", " + std::to_string(preprocess.size.width) + ")");
  }
  check_image_size({shape[0], shape[1]}, file);
  return {{shape[0], shape[1]}, preprocess.channels(), std::move(array.data)};
}

bool starts_with(const Bytes& bytes, const std::string& magic) {
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

Image decode(const Bytes& bytes, const std::string& file) {
  if (starts_with(bytes, "\x89PNG\r\n\x1a\n")) return decode_png(bytes, file);
  if (starts_with(bytes, "\xff\xd8\xff")) return decode_jpeg(bytes, file);
  if (starts_with(bytes, "P5") || starts_with(bytes, "P6")) return decode_pnm(bytes, file);
  throw Error(file + " is none of PNG, JPEG, PGM and PPM (binary), .npy and .raw; run.py reads more formats");
}

}  // namespace

std::vector<float> normalise(const Image& image, const Preprocess& preprocess) {
  const std::size_t count = image.size.height * image.size.width;
  std::vector<float> input(3 * count);
  for (std::size_t c = 0; c < 3; ++c) {
    const float scale = static_cast<float>(1.0 / 255) / preprocess.std[c], shift = preprocess.mean[c] / preprocess.std[c];
    const std::size_t channel = image.channels == 3 ? c : 0;
    for (std::size_t i = 0; i < count; ++i) {
      input[c * count + i] = static_cast<float>(image.pixels[i * image.channels + channel]) * scale - shift;
    }
  }
  return input;
}

std::vector<float> read_input(const std::string& path, const Preprocess& preprocess, const Size& frame) {
  const std::string suffix = std::filesystem::path(path).extension().string();
  Bytes bytes = read_file(path, kMaxFile);
  Image image;
  if (suffix == ".raw") {
    image = image_of_raw(std::move(bytes), path, preprocess, frame);
  } else if (suffix == ".npy") {
    Array array = read_npy(bytes, path);
    if (array.dtype == "<f4" && array.shape == std::vector<std::size_t>{1, 3, preprocess.size.height, preprocess.size.width}) {
      std::vector<float> input = array.floats();
      if (!std::all_of(input.begin(), input.end(), [](float value) { return std::isfinite(value); })) {
        throw Error(path + " holds values that are not numbers, or not finite");
      }
      return input;
    }
    image = image_of_array(std::move(array), path, preprocess);
  } else {
    image = decode(bytes, path);
  }
  return normalise(resize(convert_channels(std::move(image), preprocess.channels()), preprocess.size), preprocess);
}

}  // namespace edge
