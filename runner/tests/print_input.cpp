// Writes the network's inputs for some files to standard output, float32 as they lie in memory: tests compare them with run.py's.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "error.h"
#include "preprocess.h"

namespace {

// Whether a word is a setting and not a file.
bool take_setting(const std::string& word, edge::Preprocess& preprocess) {
  const auto value = [&word](const char* key) {
    return word.rfind(key, 0) == 0 ? word.substr(std::string(key).size()) : std::string();
  };
  if (!value("fit=").empty()) {
    preprocess.fitting = value("fit=") == "crop" ? edge::Fitting::kCrop : edge::Fitting::kLetterbox;
  } else if (!value("crop_share=").empty()) {
    preprocess.crop_share = std::strtod(value("crop_share=").c_str(), nullptr);
  } else if (!value("fill=").empty()) {
    unsigned red = 0, green = 0, blue = 0;
    if (std::sscanf(word.c_str(), "fill=%u,%u,%u", &red, &green, &blue) != 3) return false;
    preprocess.fill = {static_cast<std::uint8_t>(red), static_cast<std::uint8_t>(green), static_cast<std::uint8_t>(blue)};
  } else if (!value("interpolation=").empty()) {
    preprocess.resampling.interpolation =
        value("interpolation=") == "bicubic" ? edge::Interpolation::kBicubic : edge::Interpolation::kArea;
  } else if (word == "antialias=no") {
    preprocess.resampling.antialias = false;
  } else if (word == "order=bgr") {
    preprocess.blue_first = true;
  } else {
    return false;
  }
  return true;
}

}  // namespace

int main(int count, char** words) {
  if (count < 5) {
    std::fputs("usage: print-input gray|rgb HEIGHT WIDTH [fit=crop] [crop_share=0.875] [fill=1,2,3] [interpolation=bicubic] [antialias=no] "
               "[order=bgr] FILE ...\n", stderr);
    return 2;
  }
  edge::Preprocess preprocess;
  preprocess.gray = std::string(words[1]) == "gray";
  preprocess.size = {std::strtoul(words[2], nullptr, 10), std::strtoul(words[3], nullptr, 10)};
  preprocess.mean = {0.5f, 0.4f, 0.3f};
  preprocess.std = {0.5f, 0.3f, 0.2f};
  int status = 0, first = 4;
  while (first < count && take_setting(words[first], preprocess)) ++first;
  for (int i = first; i < count; ++i) {
    try {
      const std::vector<float> input = edge::read_input(words[i], preprocess, preprocess.size);
      std::fwrite(input.data(), sizeof(float), input.size(), stdout);
    } catch (const edge::Error& reason) {
      std::fprintf(stderr, "error: %s\n", reason.what());
      status = 2;
    } catch (const std::bad_alloc&) {
      std::fprintf(stderr, "error: %s needs more memory than there is\n", words[i]);
      status = 2;
    }
  }
  return status;
}
