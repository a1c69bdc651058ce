#include <cctype>

#include "decode.h"
#include "error.h"

namespace edge {

// A magic, width, height and highest value in words, one blank, then the pixels.
Image decode_pnm(const Bytes& bytes, const std::string& file) {
  std::size_t at = 2, numbers[3] = {0, 0, 0};
  for (std::size_t& number : numbers) {
    while (at < bytes.size() && (std::isspace(bytes[at]) || bytes[at] == '#')) {
      if (bytes[at] == '#') {
        while (at < bytes.size() && bytes[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    std::size_t digits = 0;
    for (; at < bytes.size() && std::isdigit(bytes[at]) && digits < 9; ++at, ++digits) {
      number = number * 10 + (bytes[at] - std::size_t{'0'});
    }
    if (digits == 0) throw Error(file + " has no readable PGM or PPM header");
  }
  Image image;
  image.channels = bytes[1] == '5' ? 1 : 3;
  image.size = {numbers[1], numbers[0]};
  if (numbers[2] != 255) throw Error(file + " has values up to " + std::to_string(numbers[2]) + "; 255 can be read");
  check_image_size(image.size, file);
  const std::size_t length = numbers[0] * numbers[1] * image.channels;
  if (at >= bytes.size() || !std::isspace(bytes[at]) || bytes.size() - at - 1 < length) throw Error(file + " is cut short");
  const auto start = bytes.begin() + static_cast<std::ptrdiff_t>(at + 1);
  image.pixels.assign(start, start + static_cast<std::ptrdiff_t>(length));
  return image;
}

}  // namespace edge
