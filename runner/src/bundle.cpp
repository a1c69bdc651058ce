#include "bundle.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "error.h"
#include "json.h"
#include "numpy_files.h"
#include "sha256.h"

namespace edge {
namespace {

constexpr std::size_t kMaxFile = std::size_t{1} << 31;
constexpr std::size_t kMaxText = std::size_t{1} << 24;
constexpr std::size_t kMaxName = 255;
constexpr std::size_t kMaxInputSide = 1 << 14;

// SHA256SUMS: digests by name.
std::map<std::string, std::string> read_checksums(const std::string& folder) {
  std::map<std::string, std::string> digests;
  const std::string file = folder + "/SHA256SUMS";
  try {
    const Bytes bytes = read_file(file, kMaxText);
    std::istringstream text(std::string(bytes.begin(), bytes.end()));
    for (std::string line; std::getline(text, line);) {
      const std::size_t gap = line.find("  ");
      if (gap == std::string::npos) throw Error("no two columns");
      digests[line.substr(gap + 2)] = line.substr(0, gap);
    }
  } catch (const Error&) {
    throw Error(file + " is missing or damaged; the bundle cannot be trusted");
  }
  return digests;
}

[[noreturn]] void fail_unlisted(const std::string& name) {
  throw Error("SHA256SUMS does not list " + name + "; the bundle cannot be trusted");
}

std::map<std::string, Bytes> read_checked_files(const std::string& folder) {
  std::map<std::string, std::string> digests = read_checksums(folder);
  for (const char* needed : {"manifest.json", "golden.npz"}) digests.emplace(needed, "");
  std::map<std::string, Bytes> files;
  for (const auto& [name, digest] : digests) {
    const bool plain = !name.empty() && name.size() <= kMaxName && name.find_first_of("/\\\0", 0, 3) == std::string::npos;
    if (!plain || name == "." || name == ".." || digest.empty()) fail_unlisted(name);
    Bytes bytes;
    try {
      bytes = read_file(folder + "/" + name, kMaxFile);
    } catch (const Error&) {  // its hash is wrong, then
    }
    if (sha256(bytes) != digest) throw Error(name + " is missing or was changed since the bundle was built; flash it again");
    files[name] = std::move(bytes);
  }
  return files;
}

std::array<float, 3> read_channels(const JsonValue& value) {
  const std::vector<JsonValue> items = value.items();
  if (items.size() != 3) throw Error("manifest.json: preprocess: expected three numbers, one a channel");
  return {static_cast<float>(items[0].number()), static_cast<float>(items[1].number()), static_cast<float>(items[2].number())};
}

// The place of a value among those that are known. Throws Error for any other: to ignore it would mean other predictions.
std::size_t choose(const JsonValue& value, const std::string& key, const std::vector<std::string>& known) {
  if (!value.has(key)) return 0;
  const std::string given = value[key].string();
  const auto place = std::find(known.begin(), known.end(), given);
  if (place == known.end()) throw Error("manifest.json: preprocess: " + key + " " + given + " is not known to this program; build a newer one");
  return static_cast<std::size_t>(place - known.begin());
}

void check_keys(const JsonValue& value) {
  static const std::set<std::string> known = {"image_size", "mode", "mean", "std", "resize", "scale", "fit", "crop_share", "fill",
                                              "interpolation", "antialias", "order"};
  for (const std::string& key : value.keys()) {
    if (!known.count(key)) throw Error("manifest.json: preprocess: " + key + " is not known to this program; build a newer one");
  }
}

// What stands in a manifest of schema 2 only, where it is not the default.
void read_fitting(const JsonValue& value, Preprocess& preprocess) {
  preprocess.fitting = static_cast<Fitting>(choose(value, "fit", {"stretch", "crop", "letterbox"}));
  preprocess.resampling.interpolation = static_cast<Interpolation>(choose(value, "interpolation", {"bilinear", "bicubic", "area"}));
  preprocess.resampling.antialias = !value.has("antialias") || value["antialias"].boolean();
  preprocess.blue_first = choose(value, "order", {"rgb", "bgr"}) == 1;
  if (value.has("crop_share")) preprocess.crop_share = value["crop_share"].number();
  if (!(preprocess.crop_share > 0.01 && preprocess.crop_share <= 1)) throw Error("manifest.json: preprocess: crop_share is not from 0.01 to 1");
  if (!value.has("fill")) return;
  const std::vector<JsonValue> levels = value["fill"].items();
  if (levels.size() != 3) throw Error("manifest.json: preprocess: fill: expected red, green and blue");
  for (std::size_t c = 0; c < 3; ++c) {
    if (levels[c].count() > 255) throw Error("manifest.json: preprocess: fill is above 255");
    preprocess.fill[c] = static_cast<std::uint8_t>(levels[c].count());
  }
}

Preprocess read_preprocess(const JsonValue& value) {
  check_keys(value);
  const std::vector<JsonValue> sides = value["image_size"].items();
  if (sides.size() != 2) throw Error("manifest.json: preprocess: image_size: expected height and width");
  Preprocess preprocess;
  preprocess.size = {sides[0].count(), sides[1].count()};
  const auto [height, width] = preprocess.size;
  if (height == 0 || width == 0 || height > kMaxInputSide || width > kMaxInputSide) {
    throw Error("manifest.json: no network takes images of " + to_string(preprocess.size));
  }
  const std::string mode = value["mode"].string();
  if (mode != "gray" && mode != "rgb") throw Error("manifest.json: preprocess: mode " + mode + "; accepted are gray and rgb");
  preprocess.gray = mode == "gray";
  preprocess.mean = read_channels(value["mean"]);
  preprocess.std = read_channels(value["std"]);
  for (const float deviation : preprocess.std) {
    if (!(deviation > 0)) throw Error("manifest.json: preprocess: std is not above 0");
  }
  read_fitting(value, preprocess);
  return preprocess;
}

void read_manifest(Bundle& bundle) {
  const JsonValue manifest = parse_json(bundle.files["manifest.json"], "manifest.json");
  const double schema = manifest["schema"].number();
  if (schema != 1 && schema != 2) throw Error("manifest.json has schema " + std::to_string(schema) + "; this program reads 1 and 2");
  bundle.accepted = !manifest.has("accepted") || manifest["accepted"].boolean();
  bundle.runtime = manifest["runtime"].string();
  bundle.runtime_built = manifest["runtime_version"][bundle.runtime].string();
  bundle.precision_hint = manifest["precision_hint"].string();
  bundle.threads = manifest["threads"].count();
  bundle.preprocess = read_preprocess(manifest["preprocess"]);
  for (const JsonValue& name : manifest["classes"].items()) bundle.classes.push_back(name.string());
  if (bundle.classes.empty()) throw Error("manifest.json names no classes");
  for (const JsonValue& name : manifest["model"]["files"].items()) {
    bundle.model_files.push_back(name.string());
    if (!bundle.files.count(name.string())) fail_unlisted(name.string());
  }
  if (bundle.model_files.empty()) throw Error("manifest.json names no model");
  bundle.step = manifest["golden"]["step"].number();
  bundle.tolerance_steps = manifest["golden"]["tolerance_steps"].number();
  if (!(bundle.step > 0)) throw Error("manifest.json: golden: step is not above 0");
}

void read_golden(Bundle& bundle) {
  const std::map<std::string, Array> arrays = read_npz(bundle.files["golden.npz"], "golden.npz");
  const auto pixels = arrays.find("pixels"), logits = arrays.find("logits");
  if (pixels == arrays.end() || logits == arrays.end()) throw Error("golden.npz lacks pixels or logits");
  const Preprocess& preprocess = bundle.preprocess;
  const std::size_t count = logits->second.shape.empty() ? 0 : logits->second.shape[0];
  std::vector<std::size_t> expected = {count, preprocess.size.height, preprocess.size.width};
  if (!preprocess.gray) expected.push_back(3);
  if (count == 0 || pixels->second.dtype != "|u1" || pixels->second.shape != expected ||
      logits->second.shape != std::vector<std::size_t>{count, bundle.classes.size()}) {
    throw Error("golden.npz holds " + pixels->second.describe() + " and " + logits->second.describe() + ", which do not suit the manifest");
  }
  const std::size_t size = preprocess.size.height * preprocess.size.width * preprocess.channels();
  const std::vector<float> all_logits = logits->second.floats();
  for (std::size_t i = 0; i < count; ++i) {
    const auto image = pixels->second.data.begin() + static_cast<std::ptrdiff_t>(i * size);
    bundle.golden_images.push_back({preprocess.size, preprocess.channels(), Bytes(image, image + static_cast<std::ptrdiff_t>(size))});
    const auto row = all_logits.begin() + static_cast<std::ptrdiff_t>(i * bundle.classes.size());
    bundle.golden_logits.emplace_back(row, row + static_cast<std::ptrdiff_t>(bundle.classes.size()));
  }
}

}  // namespace

Bundle load_bundle(const std::string& folder) {
  Bundle bundle;
  bundle.files = read_checked_files(folder);
  read_manifest(bundle);
  read_golden(bundle);
  return bundle;
}

}  // namespace edge
