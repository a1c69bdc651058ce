// A bundle as it was built: every file is hashed before anything in it is believed.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "preprocess.h"

namespace edge {

struct Bundle {
  std::map<std::string, Bytes> files;  // all of them, as they were hashed
  std::string runtime, runtime_built;  // that the model is for, and the version that it was checked with
  std::string precision_hint;
  std::size_t threads = 1;
  std::vector<std::string> model_files;  // the first is opened, the second has its weights
  Preprocess preprocess;
  std::vector<std::string> classes;
  bool accepted = true;  // false: the model missed a budget
  double step = 1, tolerance_steps = 0;  // of the golden outputs: a quantization step, and how many of them are allowed
  std::vector<Image> golden_images;
  std::vector<std::vector<float>> golden_logits;
};

// Throws Error, naming the file, where one is missing, was changed, or is not as a manifest of schema 1 or 2 says.
Bundle load_bundle(const std::string& folder);

}  // namespace edge
