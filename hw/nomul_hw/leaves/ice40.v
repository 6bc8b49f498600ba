  // The carry takes the LUT's own inputs: what is added must be formed in front of it.
  wire [WIDTH-1:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
      SB_LUT4 #(.LUT_INIT(16'hC33C)) lut (.I0(1'b0), .I1(left[i]), .I2(right[i]), .I3(carry[i]), .O(s[i]));
      if (i + 1 < WIDTH)
        SB_CARRY chain (.I0(left[i]), .I1(right[i]), .CI(carry[i]), .CO(carry[i+1]));
    end
  endgenerate
