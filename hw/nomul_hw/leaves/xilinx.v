  // The LUT in front of the carry has six inputs: it takes in what f is made of.
  localparam QUADS = (WIDTH + 3) / 4;
  wire [4*QUADS-1:0] differ = left ^ right, generated = left, si;
  wire [4*QUADS-1:0] carry;
  assign s = si[WIDTH-1:0];
  genvar i;
  generate
    for (i = 0; i < QUADS; i = i + 1) begin : quad
      if (i == 0)
        CARRY4 cell_i (.CI(1'b0), .CYINIT(1'b0), .DI(generated[3:0]), .S(differ[3:0]), .O(si[3:0]), .CO(carry[3:0]));
      else
        CARRY4 cell_i (.CI(carry[4*i-1]), .CYINIT(1'b0), .DI(generated[4*i+:4]), .S(differ[4*i+:4]), .O(si[4*i+:4]),
                       .CO(carry[4*i+:4]));
    end
  endgenerate
