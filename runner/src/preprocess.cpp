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

// The size that the whole image gets, the part of it that is used, and where that stands in the input.
struct Plan {
  Size resized;
  Window used;
  std::size_t top = 0, left = 0;
};

std::size_t round_to_even(std::size_t number, std::size_t divisor) {
  return static_cast<std::size_t>(std::nearbyint(static_cast<double>(number) / static_cast<double>(divisor)));
}

Plan make_plan(const Size& from, const Preprocess& preprocess) {
  const Size& size = preprocess.size;
  if (preprocess.fitting == Fitting::kCrop) {
    const auto enlarged = [&](std::size_t side) { return static_cast<std::size_t>(static_cast<double>(side) / preprocess.crop_share + 1e-6); };
    const std::size_t tall = enlarged(size.height), wide = enlarged(size.width);
    const bool covers = tall * from.width >= wide * from.height;
    const Size resized = covers ? Size{tall, tall * from.width / from.height} : Size{wide * from.height / from.width, wide};
    return {resized, {round_to_even(resized.height - size.height, 2), round_to_even(resized.width - size.width, 2), size}, 0, 0};
  }
  if (preprocess.fitting == Fitting::kLetterbox) {
    const bool full_height = size.height * from.width <= size.width * from.height;
    const Size resized = full_height
                             ? Size{size.height, std::max<std::size_t>(1, round_to_even(from.width * size.height, from.height))}
                             : Size{std::max<std::size_t>(1, round_to_even(from.height * size.width, from.width)), size.width};
    return {resized, {0, 0, resized}, (size.height - resized.height) / 2, (size.width - resized.width) / 2};
  }
  return {size, {0, 0, size}, 0, 0};
}

Image add_bars(const Image& image, const Plan& plan, const Preprocess& preprocess) {
  Image framed{preprocess.size, image.channels, Bytes(preprocess.size.height * preprocess.size.width * image.channels)};
  for (std::size_t i = 0; i < framed.pixels.size(); ++i) framed.pixels[i] = preprocess.fill[i % image.channels];
  const std::size_t row = image.size.width * image.channels;
  for (std::size_t y = 0; y < image.size.height; ++y) {
    std::uint8_t* target = framed.pixels.data() + ((plan.top + y) * preprocess.size.width + plan.left) * image.channels;
    std::memcpy(target, image.pixels.data() + y * row, row);
  }
  return framed;
}

}  // namespace

Image fit(Image image, const Preprocess& preprocess, const std::string& file) {
  const Plan plan = make_plan(image.size, preprocess);
  if (preprocess.fitting != Fitting::kStretch &&
      std::max(image.size.height * plan.resized.width, plan.resized.height * plan.used.size.width) > kMaxPixels) {
    throw Error(file + " has " + to_string(image.size) + " pixels (height x width), too narrow to fit to " + to_string(preprocess.size));
  }
  image = resize(std::move(image), plan.resized, plan.used, preprocess.resampling);
  if (!(image.size == preprocess.size)) image = add_bars(image, plan, preprocess);
  if (preprocess.blue_first && image.channels == 3) {
    for (std::size_t i = 0; i < image.pixels.size(); i += 3) std::swap(image.pixels[i], image.pixels[i + 2]);
  }
  return image;
}

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
  return normalise(fit(convert_channels(std::move(image), preprocess.channels()), preprocess, path), preprocess);
}

}  // namespace edge
